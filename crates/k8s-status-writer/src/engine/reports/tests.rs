use std::time::SystemTime;

use super::*;
use crate::pod::Container;

const WAIT: Duration = Duration::from_mins(1);

fn pod_ref() -> PodRef {
    PodRef::new("default", "web").unwrap()
}

fn pod(id: &str) -> Pod {
    let container =
        Container { name: "app".into(), id: ContainerId::new(id).ok(), ..Container::default() };
    Pod { containers: [container].into(), ..Pod::default() }
}

fn report(id: &str) -> Report {
    Report {
        id: ContainerId::new(id).ok(),
        container: "app".into(),
        warning: false,
        reason: "Scaled down",
        message: "m".into(),
        first: SystemTime::UNIX_EPOCH,
        last: SystemTime::UNIX_EPOCH,
        count: 1,
    }
}

#[test]
fn s1_reports_wait_for_the_pods_to_be_known() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    for _ in 0..10 {
        reports.add(&pod_ref(), report("c1"), now).unwrap();
    }
    let later = now + Duration::from_hours(1);
    assert_eq!(reports.look(&pod_ref(), None, false, later).1, []);
    reports.pop(later).unwrap_err();
    assert_eq!(reports.look(&pod_ref(), Some(&pod("c1")), true, later).1, []);
    for _ in 0..10 {
        reports.pop(later).unwrap();
    }
    assert_eq!(reports.len(), 0);
}

#[test]
fn s11_a_report_of_another_pod_is_dropped_when_that_is_certain() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    reports.add(&pod_ref(), report("old"), now).unwrap();
    // The new pod's container has no id yet, then one of its own.
    let (next, dropped) = reports.look(&pod_ref(), Some(&pod("")), true, now);
    assert_eq!((next, dropped), (Some(now + WAIT), vec![]));
    let (_, dropped) = reports.look(&pod_ref(), Some(&pod("new")), true, now);
    assert_eq!(dropped, [Dropped::NotOfThisPod]);
}

#[test]
fn s11_a_restarted_container_is_waited_for() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    reports.add(&pod_ref(), report("c2"), now).unwrap();
    assert_eq!(reports.look(&pod_ref(), Some(&pod("c1")), true, now).1, []);
    assert_eq!(reports.look(&pod_ref(), Some(&pod("c2")), true, now).1, []);
    reports.pop(now).unwrap();
    // But not for ever.
    reports.add(&pod_ref(), report("c3"), now).unwrap();
    assert_eq!(reports.look(&pod_ref(), Some(&pod("c2")), true, now).1, []);
    let dropped = reports.look(&pod_ref(), Some(&pod("c2")), true, now + WAIT).1;
    assert_eq!(dropped, [Dropped::NotOfThisPod]);
}

#[test]
fn a_report_of_the_run_before_is_still_of_this_pod() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    let mut restarted = pod("c2");
    restarted.containers[0].previous_id = ContainerId::new("c1").ok();
    reports.add(&pod_ref(), report("c1"), now).unwrap();
    reports.look(&pod_ref(), Some(&restarted), true, now);
    reports.pop(now).unwrap();
}

#[test]
fn f_j3_above_the_rate_one_report_carries_the_count() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    let pod = pod("c1");
    for _ in 0..128 {
        reports.add(&pod_ref(), report("c1"), now).unwrap();
    }
    let (next, _) = reports.look(&pod_ref(), Some(&pod), true, now);
    let counts = |reports: &mut Reports, now| {
        std::iter::from_fn(|| reports.pop(now).ok()).map(|r| r.report.count).collect::<Vec<_>>()
    };
    assert_eq!(counts(&mut reports, now), [1; 25]);
    let later = next.unwrap();
    assert!(later <= now + REFILL);
    reports.look(&pod_ref(), Some(&pod), true, later);
    assert_eq!(counts(&mut reports, later), [103]);
    // Nothing is kept of a container that went quiet.
    reports.look(&pod_ref(), Some(&pod), true, later + REFILL * 30);
    assert_eq!(reports.pods().len(), 0);
}

#[test]
fn memory_is_bounded() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    let mut full = 0;
    for number in 0..10_000 {
        let pod = PodRef::new("default", &format!("p{number}")).unwrap();
        full += usize::from(reports.add(&pod, report("c1"), now) == Err(Dropped::QueueFull));
    }
    assert_eq!((reports.len(), full), (CAPACITY, 10_000 - CAPACITY));
    // A pod that has one already loses none.
    let pod = PodRef::new("default", "p1").unwrap();
    reports.add(&pod, report("c1"), now).unwrap();
    assert_eq!(reports.len(), CAPACITY);
}

#[test]
fn tries_are_counted_and_spaced() {
    let now = Instant::now();
    let mut reports = Reports::new(WAIT);
    reports.add(&pod_ref(), report("c1"), now).unwrap();
    reports.look(&pod_ref(), Some(&pod("c1")), true, now);
    let mut at = now;
    loop {
        let ready = reports.pop(at).unwrap();
        match reports.retry(ready, at) {
            Ok(()) => at = reports.pop(at).unwrap_err().unwrap(),
            Err(dropped) => break assert_eq!(dropped, Dropped::Attempts),
        }
    }
    assert!(at > now + Duration::from_mins(2));
}
