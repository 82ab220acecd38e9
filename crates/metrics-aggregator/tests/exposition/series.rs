//! The contracted series of a container through its life.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime};

use zeropod_metrics_aggregator::{Aggregator, Format, Totals};
use zeropod_shim_api::{
    change::{Cause, ContainerState, Update},
    status::{MetricsReading, Operation, Phase},
};

use crate::common::{Container, operation};

/// Value of the sample whose line starts with `name` and has the labels of the
/// test's container.
fn value(aggregator: &Aggregator, name: &str) -> Option<f64> {
    let start = format!("{name}{{container=\"app\",namespace=\"default\",pod=\"web-0\"");
    let text = aggregator.render(Format::Text);
    let mut lines = text.lines().filter(|line| line.starts_with(&start));
    let line = lines.next_back()?;
    line.rsplit_once(' ').unwrap().1.parse().ok()
}

#[test]
fn every_series_is_right_after_a_scale_down_and_a_wake_up() {
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    aggregator.apply(&Update::Snapshot(Vec::new()));
    aggregator.apply(&web.event(Phase::Running, None));
    assert_eq!(value(&aggregator, "zeropod_running"), Some(1.0));
    let checkpoint = operation(250);
    aggregator.apply(&web.event(Phase::ScaledDown, Some(checkpoint)));
    assert_eq!(value(&aggregator, "zeropod_running"), Some(0.0));
    let restore = operation(45);
    aggregator.apply(&web.event(Phase::Running, Some(restore)));

    let text = aggregator.render(Format::Text);
    let labels = r#"container="app",namespace="default",pod="web-0""#;
    let nanos = |operation: Operation| {
        operation.ended.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()
    };
    for line in [
        "# TYPE zeropod_checkpoint_duration_seconds histogram".to_owned(),
        format!(r#"zeropod_checkpoint_duration_seconds_bucket{{{labels},le="0.2"}} 0"#),
        format!(r#"zeropod_checkpoint_duration_seconds_bucket{{{labels},le="0.3"}} 1"#),
        format!(r#"zeropod_checkpoint_duration_seconds_bucket{{{labels},le="1"}} 1"#),
        format!(r#"zeropod_checkpoint_duration_seconds_bucket{{{labels},le="10"}} 1"#),
        format!(r#"zeropod_checkpoint_duration_seconds_bucket{{{labels},le="+Inf"}} 1"#),
        format!("zeropod_checkpoint_duration_seconds_sum{{{labels}}} 0.25"),
        format!("zeropod_checkpoint_duration_seconds_count{{{labels}}} 1"),
        format!(r#"zeropod_restore_duration_seconds_bucket{{{labels},le="0.05"}} 1"#),
        format!("zeropod_restore_duration_seconds_sum{{{labels}}} 0.045"),
        "# TYPE zeropod_last_checkpoint_time gauge".to_owned(),
        format!("zeropod_last_checkpoint_time{{{labels}}} {}", nanos(checkpoint)),
        format!("zeropod_last_restore_time{{{labels}}} {}", nanos(restore)),
        format!("zeropod_running{{{labels}}} 1"),
        "# TYPE zeropod_checkpoint_errors_total counter".to_owned(),
        format!("zeropod_checkpoint_errors_total{{{labels}}} 0"),
        format!("zeropod_restore_errors_total{{{labels}}} 0"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }

    let totals = aggregator.totals(&web.key).unwrap();
    assert_eq!((totals.wake_ups, totals.restore_errors), (1, 0));
    aggregator.apply(&web.change(Cause::Removed));
    let text = aggregator.render(Format::Text);
    assert!(!text.contains("web-0"));
    assert_eq!(aggregator.totals(&web.key), None);
    // What the node did stays.
    assert!(text.contains("\nzeropod_checkpoints_total{outcome=\"success\"} 1\n"), "{text}");
    assert!(text.contains("\nzeropod_restores_total{outcome=\"failure\"} 0\n"), "{text}");
}

/// X3: an operation is counted once, whichever of event and reading tells of
/// it first.
#[test]
fn events_and_readings_of_one_operation_count_once() {
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    let count = "zeropod_checkpoint_duration_seconds_count";
    for reading_first in [true, false, true] {
        let before = value(&aggregator, count).unwrap_or(0.0);
        let checkpoint = operation(100);
        let event = web.event(Phase::ScaledDown, Some(checkpoint));
        let reading =
            web.reading(MetricsReading { checkpoint: Some(checkpoint), ..web.nothing_new() });
        let (first, second) = if reading_first { (reading, event) } else { (event, reading) };
        aggregator.apply(&first);
        aggregator.apply(&second);
        assert_eq!(value(&aggregator, count), Some(before + 1.0));
        aggregator.apply(&web.event(Phase::Running, Some(operation(50))));
        // A failure repeats the last operation of the other kind.
        aggregator.apply(&web.event(Phase::RestoreFailed, Some(checkpoint)));
        assert_eq!(value(&aggregator, count), Some(before + 1.0));
    }
    assert_eq!(value(&aggregator, "zeropod_restore_errors_total"), Some(3.0));
}

/// A backlog whose last operation was read before the queue was taken.
#[test]
fn a_reading_ahead_of_a_full_queue_counts_once() {
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    let queue: Vec<Operation> = (0..64).map(operation).collect();
    aggregator.apply(&web.reading(MetricsReading {
        checkpoint: queue.last().copied(),
        restore: queue.last().copied(),
        ..web.nothing_new()
    }));
    for queued in queue {
        aggregator.apply(&web.event(Phase::ScaledDown, Some(queued)));
        aggregator.apply(&web.event(Phase::Running, Some(queued)));
    }
    assert_eq!(value(&aggregator, "zeropod_checkpoint_duration_seconds_count"), Some(64.0));
    assert_eq!(value(&aggregator, "zeropod_restore_duration_seconds_count"), Some(64.0));
}

/// A restart of the manager: the predecessor has counted what it read, and
/// what happened meanwhile comes as events.
#[test]
fn what_was_before_the_start_counts_only_as_events() {
    let before = operation(100);
    let missed = operation(200);
    std::thread::sleep(Duration::from_millis(2));
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    aggregator.apply(&web.reading(MetricsReading {
        checkpoint: Some(missed),
        restore: Some(before),
        checkpoint_errors: 1,
        restore_errors: 1,
        ..web.nothing_new()
    }));
    aggregator.apply(&web.event(Phase::RestoreFailed, None));
    assert_eq!(value(&aggregator, "zeropod_checkpoint_errors_total"), Some(0.0));
    assert_eq!(value(&aggregator, "zeropod_restore_errors_total"), Some(1.0));
    let later = MetricsReading { checkpoint_errors: 1, restore_errors: 1, ..web.nothing_new() };
    aggregator.apply(&web.reading(later));
    assert_eq!(value(&aggregator, "zeropod_checkpoint_errors_total"), Some(1.0));
    assert_eq!(value(&aggregator, "zeropod_checkpoint_duration_seconds_count"), Some(0.0));
    assert!(value(&aggregator, "zeropod_last_checkpoint_time").is_some());
    aggregator.apply(&web.event(Phase::ScaledDown, Some(missed)));
    assert_eq!(value(&aggregator, "zeropod_checkpoint_duration_seconds_count"), Some(1.0));
    assert_eq!(value(&aggregator, "zeropod_restore_duration_seconds_count"), Some(0.0));
}

/// F-H1: error counts of readings are deltas, to be added, and each error of
/// which an event told as well counts once.
#[test]
fn error_deltas_are_added_once() {
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    let errors = "zeropod_checkpoint_errors_total";
    let delta = |checkpoint_errors| MetricsReading { checkpoint_errors, ..web.nothing_new() };
    let (two, one, none) = (web.reading(delta(2)), web.reading(delta(1)), web.reading(delta(0)));
    aggregator.apply(&web.event(Phase::Running, None));
    aggregator.apply(&two);
    aggregator.apply(&none);
    assert_eq!(value(&aggregator, errors), Some(2.0));
    // Their events were only late.
    aggregator.apply(&web.event(Phase::CheckpointFailed, None));
    aggregator.apply(&web.event(Phase::CheckpointFailed, None));
    assert_eq!(value(&aggregator, errors), Some(2.0));
    aggregator.apply(&web.event(Phase::CheckpointFailed, None));
    assert_eq!(value(&aggregator, errors), Some(3.0));
    aggregator.apply(&one);
    assert_eq!(value(&aggregator, errors), Some(3.0));
}

/// S11, F-R4: a pod is replaced by one of the same name behind another shim;
/// no exposition has a series twice, and the end of the old one is not the end
/// of the new one.
#[test]
fn a_replaced_pod_has_one_set_of_series() {
    let aggregator = Aggregator::new();
    let mut old = Container::new("old.sock", "web-0");
    let mut new = Container::new("new.sock", "web-0");
    let mut neighbour = Container::new("old.sock", "web-1");
    for event in [
        old.event(Phase::ScaledDown, Some(operation(1))),
        neighbour.event(Phase::Running, None),
        new.event(Phase::Running, None),
        old.event(Phase::Running, None),
    ] {
        aggregator.apply(&event);
    }
    let text = aggregator.render(Format::Text);
    let running: Vec<&str> =
        text.lines().filter(|line| line.starts_with("zeropod_running{")).collect();
    assert_eq!(running.len(), 2, "{running:?}");
    assert_eq!(value(&aggregator, "zeropod_checkpoint_duration_seconds_count"), Some(0.0));
    aggregator.apply(&old.change(Cause::Removed));
    assert_eq!(value(&aggregator, "zeropod_running"), Some(1.0));
    assert!(aggregator.render(Format::Text).contains("web-1"));
}

/// A snapshot ends what it does not list.
#[test]
fn a_snapshot_replaces_everything() {
    let aggregator = Aggregator::new();
    let mut gone = Container::new("abc.sock", "web-1");
    let mut web = Container::new("abc.sock", "web-0");
    aggregator.apply(&gone.event(Phase::Running, None));
    aggregator.apply(&web.event(Phase::Running, None));
    let missed = operation(300);
    web.state = ContainerState {
        phase: Phase::ScaledDown,
        since: Some(missed.ended),
        checkpoint: Some(missed),
        ..web.state
    };
    let snapshot = Update::Snapshot(vec![(web.key.clone(), web.state.clone())]);
    aggregator.apply(&snapshot);
    aggregator.apply(&snapshot);
    assert_eq!(value(&aggregator, "zeropod_running"), Some(0.0));
    assert_eq!(value(&aggregator, "zeropod_checkpoint_duration_seconds_count"), Some(1.0));
    assert!(!aggregator.render(Format::Text).contains("web-1"));
}

/// Time scaled down counts from the start of this process, also when it began
/// earlier, and goes on between the changes.
#[test]
fn time_scaled_down_is_counted() {
    let long_ago = SystemTime::now() - Duration::from_hours(1);
    let start = SystemTime::now();
    let aggregator = Aggregator::new();
    let mut web = Container::new("abc.sock", "web-0");
    web.state = ContainerState { phase: Phase::ScaledDown, since: Some(long_ago), ..web.state };
    aggregator.apply(&web.reading(web.nothing_new()));
    let totals = || aggregator.totals(&web.key).unwrap().scaled_down;
    let first = totals();
    while totals() == first {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(totals() <= start.elapsed().unwrap());
    let woken = SystemTime::now();
    let running = ContainerState { phase: Phase::Running, since: Some(woken), ..web.state.clone() };
    let mut awake = Container { key: web.key.clone(), state: running };
    aggregator.apply(&awake.event(Phase::Running, None));
    let Totals { scaled_down, .. } = aggregator.totals(&web.key).unwrap();
    assert!(scaled_down > first && scaled_down <= woken.duration_since(start).unwrap());
    assert_eq!(
        value(&aggregator, "zeropod_scaled_down_seconds_total"),
        Some(scaled_down.as_secs_f64())
    );
}

/// What crates record through the facade stands beside it.
#[test]
fn recorded_metrics_are_rendered() {
    let aggregator = Aggregator::new();
    metrics::with_local_recorder(&aggregator.recorder(), || {
        metrics::describe_counter!("zeropod_test_total", "What \"happened\"\nin tests.");
        metrics::counter!("zeropod_test_total", "kind" => "a\"b\\c\nd").increment(2);
        metrics::gauge!("zeropod_test_level").set(1.5);
        metrics::histogram!("zeropod_test_seconds").record(0.3);
        for number in 0..1_000 {
            metrics::counter!("zeropod_test_many_total", "n" => number.to_string()).increment(1);
        }
    });
    let text = aggregator.render(Format::Text);
    for line in [
        r#"# HELP zeropod_test_total What "happened"\nin tests."#,
        r#"zeropod_test_total{kind="a\"b\\c\nd"} 2"#,
        "zeropod_test_level 1.5",
        r#"zeropod_test_seconds_bucket{le="0.3"} 1"#,
        "zeropod_test_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }
    let many = text.lines().filter(|line| line.starts_with("zeropod_test_many_total{")).count();
    assert_eq!(many, 256);
}
