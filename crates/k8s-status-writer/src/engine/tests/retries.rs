//! Restores that the kubelet can't carry out (F-K7, K4).

use super::*;

/// What a kubelet says of the pod: the memory that `app` has, and a condition.
fn kubelet(world: &mut World, memory: &str, reason: Option<&str>) {
    world.edit("web", |pod| {
        pod["status"]["containerStatuses"][0]["resources"] =
            json!({ "requests": { "cpu": "2m", "memory": memory } });
        pod["status"]["conditions"] = reason.map_or(
            json!([]),
            |reason| json!([{ "type": "PodResizePending", "status": "True", "reason": reason }]),
        );
    });
}

/// A pod that was scaled down and woken up, whose restore is infeasible.
fn infeasible() -> World {
    let mut world = World::synced();
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_secs(5));
    kubelet(&mut world, "1Ki", None);
    world.event("web", "c1", Phase::Running);
    world.pass(Duration::from_secs(5));
    world.asked();
    kubelet(&mut world, "1Ki", Some("Infeasible"));
    world.run();
    assert_eq!(world.asked(), ["web event Resize infeasible"]);
    world
}

#[test]
fn f_k7_an_infeasible_restore_is_asked_for_again() {
    let mut world = infeasible();
    let mut rests = Vec::new();
    for _ in 0..8 {
        let start = world.now;
        while world.asked().is_empty() {
            world.pass(Duration::from_secs(1));
        }
        rests.push((world.now - start).as_secs().div_ceil(10) * 10);
        assert_eq!(world.cpu("web"), "1m");
        // The kubelet sees it, and the next request.
        kubelet(&mut world, "1Ki", None);
        world.run();
        assert_eq!(world.asked(), ["web cpu 100m"]);
        kubelet(&mut world, "1Ki", Some("Infeasible"));
        world.run();
        assert_eq!(world.asked(), [""; 0], "told once");
    }
    assert_eq!(rests, [60, 120, 240, 480, 960, 1800, 1800, 1800]);
    // The node has become larger.
    world.pass(Duration::from_mins(30));
    kubelet(&mut world, "1Ki", None);
    world.run();
    kubelet(&mut world, "128Mi", None);
    world.asked();
    world.pass(Duration::from_hours(3));
    assert_eq!(world.asked(), [""; 0]);
    assert_eq!(world.cpu("web"), "100m");
    // Another time it is news, and the first try comes soon.
    kubelet(&mut world, "1Ki", Some("Infeasible"));
    world.pass(Duration::from_secs(59));
    assert_eq!(world.asked(), ["web event Resize infeasible"]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.asked(), ["web cpu 1m"]);
}

#[test]
fn a_kubelet_that_says_nothing_delays_the_next_request_for_a_moment_only() {
    let mut world = infeasible();
    world.pass(Duration::from_secs(65));
    assert_eq!(world.asked(), ["web cpu 1m"]);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.asked(), ["web cpu 100m"]);
}

#[test]
fn what_is_not_ours_or_waits_is_not_taken_back() {
    // A deferred one keeps its place, and the kubelet tries it again.
    let mut world = infeasible();
    kubelet(&mut world, "1Ki", Some("Deferred"));
    world.pass(Duration::from_hours(1));
    assert_eq!(world.asked(), ["web event Resize deferred"]);
    // Somebody asked for more than there is, for a container that has enough.
    let mut world = infeasible();
    world.edit("web", |pod| {
        pod["spec"]["containers"][0]["resources"]["requests"] =
            json!({ "cpu": "900", "memory": "128Mi" });
    });
    world.edit("web", |pod| {
        pod["status"]["containerStatuses"][0]["resources"] =
            json!({ "requests": { "cpu": "100m", "memory": "128Mi" } });
    });
    world.pass(Duration::from_hours(1));
    assert_eq!(world.asked().len(), 1, "recorded only");
    assert_eq!(world.cpu("web"), "900");
    // It is scaled down again meanwhile.
    let mut world = infeasible();
    world.reading("web", "c1", Phase::ScaledDown);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.asked(), ["web label SCALED_DOWN", "web cpu 1m"]);
    world.pass(Duration::from_hours(1));
    assert_eq!(world.asked(), [""; 0]);
    // Its waking up is not held, although the kubelet still says no.
    world.reading("web", "c1", Phase::Running);
    world.run();
    assert_eq!(world.asked(), ["web cpu 100m", "web label RUNNING"]);
}

#[test]
fn k4_a_withdrawal_that_is_refused_is_not_asked_for_again() {
    let mut world = infeasible();
    world.refuse = |write| {
        let (reason, message) = (crate::plan::RefusalReason::Admission, "denied".into());
        matches!(write, Write::Resize(_)).then_some(WriteError::Refused { reason, message })
    };
    world.pass(Duration::from_hours(5));
    assert_eq!(world.asked(), ["web cpu 1m refused"]);
}
