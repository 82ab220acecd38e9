//! Many changes at once cost few writes.

use super::*;

/// 1,000 events over 100 pods, one every `gap`.
fn burst(gap: Duration, last: Phase) -> World {
    let mut world = World::synced();
    for number in 0..100 {
        world.pod(&format!("p{number}"), &format!("c{number}"));
    }
    let other = if last == Phase::Running { Phase::ScaledDown } else { Phase::Running };
    for round in 0..10u64 {
        for number in 0..100 {
            let phase = if round % 2 == 1 { last } else { other };
            world.event_at(&format!("p{number}"), &format!("c{number}"), phase, round);
            world.pass(gap);
        }
    }
    world
}

#[test]
fn s10_a_burst_of_1000_events_costs_less_than_500_pod_writes() {
    for gap in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(1)] {
        for last in [Phase::Running, Phase::ScaledDown] {
            let mut world = burst(gap, last);
            world.pass(Duration::from_secs(2));
            // Labels are right within two seconds.
            for number in 0..100 {
                assert_eq!(world.label(&format!("p{number}")), last.as_str(), "{gap:?}");
            }
            world.pass(Duration::from_mins(1));
            let asked = world.asked();
            let events = asked.iter().filter(|line| line.contains("event")).count();
            assert!(asked.len() - events < 500, "{gap:?} {last}: {}", asked.len() - events);
            assert_eq!(events, 1000);
            let cpu = if last == Phase::Running { "100m" } else { "1m" };
            assert_eq!(world.cpu("p99"), cpu);
        }
    }
}

#[test]
fn f_i3_a_container_that_flaps_costs_a_write_of_each_kind_per_second() {
    let mut world = World::synced();
    world.pod("web", "c1");
    for round in 0..200 {
        let phase = if round % 2 == 0 { Phase::ScaledDown } else { Phase::Running };
        world.event_at("web", "c1", phase, round);
        world.pass(Duration::from_millis(50));
    }
    let asked = world.asked();
    let of = |what: &str| asked.iter().filter(|line| line.contains(what)).count();
    assert!(of("label") <= 11 && of("cpu 1m") <= 11 && of("cpu 100m") <= 11, "{asked:?}");
    assert!(of("event") <= 28, "{}", of("event"));
}
