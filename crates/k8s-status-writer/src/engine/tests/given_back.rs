//! What is told of the requests that containers give back.

use super::*;
use crate::given_back::GivenBack;

#[test]
fn a_container_gives_back_from_its_resize_to_its_waking_up() {
    let mut world = World::synced();
    let told = world.engine.given_back().subscribe();
    let all = |told: &watch::Receiver<BTreeMap<ContainerRef, GivenBack>>| told.borrow().clone();
    world.pod("web", "c1");
    world.pod("other", "c2");
    world.event("web", "c1", Phase::ScaledDown);
    assert_eq!(all(&told), BTreeMap::new(), "the server has not agreed yet");
    world.run();
    let given = GivenBack { cpu_cores: 0.099, memory_bytes: (128 << 20) - 1024 };
    assert_eq!(all(&told), BTreeMap::from([(container("web"), given)]));

    // A manager that starts afresh finds what an earlier one has lowered.
    let mut later = World::synced();
    later.pods.clone_from(&world.pods);
    let found = later.engine.given_back().subscribe();
    later.list();
    assert_eq!(all(&found), all(&told));
    later.delete("web");
    assert_eq!(all(&found), BTreeMap::new());

    world.event("web", "c1", Phase::Running);
    world.run();
    assert_eq!(all(&told), BTreeMap::new());
}

#[test]
fn without_in_place_scaling_nothing_is_given_back() {
    let mut world = World::with(|config| config.features.in_place_scaling = false);
    world.list();
    world.update(Update::Snapshot(Vec::new()));
    world.pod("web", "c1");
    world.event("web", "c1", Phase::ScaledDown);
    world.run();
    assert!(world.engine.given_back().subscribe().borrow().is_empty());
}
