//! What others have found to be wrong with pods.

use super::*;

fn trouble(uid: &str, since: u64) -> Trouble {
    Trouble {
        pod_uid: uid.into(),
        reason: "Redirector not attached",
        message: "no eth0".into(),
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(since),
    }
}

#[test]
fn a_trouble_is_told_once_whenever_its_pod_is_known() {
    let mut world = World::synced();
    world.engine.on_troubles(vec![trouble("web", 1), trouble("nobody", 1)], world.now);
    world.pass(Duration::from_mins(5));
    assert_eq!(world.asked(), [""; 0]);
    world.pod("web", "c1");
    world.pod("other", "c2");
    world.run();
    assert_eq!(world.asked(), ["web event Redirector not attached"]);
    // Nothing new: it is said again, or the pod changes.
    world.engine.on_troubles(vec![trouble("web", 1)], world.now);
    world.edit("web", |_| ());
    world.run();
    // It is over and comes back.
    world.engine.on_troubles(Vec::new(), world.now);
    world.run();
    assert_eq!(world.asked(), [""; 0]);
    world.engine.on_troubles(vec![trouble("web", 2)], world.now);
    world.run();
    assert_eq!(world.asked(), ["web event Redirector not attached"]);
    // Another pod of the same name is another one.
    world.delete("web");
    world.create("web", "another", "c3");
    world.watch("web");
    world.run();
    assert_eq!(world.asked(), [""; 0]);
}

#[test]
fn many_troubles_of_a_pod_are_summed_up_and_none_is_told_without_events() {
    let mut world = World::synced();
    world.pod("web", "c1");
    for since in 0..100 {
        world.engine.on_troubles(vec![trouble("web", since)], world.now);
        world.run();
    }
    assert_eq!(world.asked().len(), 25);
    world.pass(Duration::from_mins(1));
    assert_eq!(world.asked(), ["web event Redirector not attached x75"]);

    let mut world = World::with(|config| config.features.events = false);
    world.list();
    world.pod("web", "c1");
    world.engine.on_troubles(vec![trouble("web", 1)], world.now);
    world.run();
    assert_eq!(world.asked(), [""; 0]);
}
