//! What the redirectors cost when they have nothing to do.
//!
//! Alone in its process: it counts the descriptors of all threads.

mod common;

use std::fs;

use zeropod_redirector_abi::NODE_MAPS;

use common::{
    can_run,
    manager::Manager,
    node::{Node, Sandbox},
    wait_until,
};

#[test]
fn a_manager_without_sandboxes_loads_nothing() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut manager = Manager::start(&node);
    wait_until("the directory is made", || node.maps_dir().exists());
    assert_eq!(fs::read_dir(node.maps_dir()).unwrap().count(), 0);
    let idle = open();
    let sandboxes = [node.sandbox(), node.sandbox(), node.sandbox(), node.sandbox()];
    sandboxes.iter().for_each(Sandbox::make_pin_dir);
    for sandbox in &sandboxes {
        manager.wait_until_attached(sandbox);
    }
    // The pins hold what is needed; what is open are the maps of the node.
    wait_until("no descriptor is left per sandbox", || open() <= idle + NODE_MAPS.len());
    manager.stop();
}
