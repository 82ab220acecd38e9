//! What many sandboxes cost the process that attaches them: `many [count]`.
//! Needs root. Leaves nothing behind.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env, fs,
    process::{Child, Command, Stdio},
    time::Instant,
};

use common::{manager::Manager, node::Node, wait_until};
use zeropod_ebpf_loader::{Attachment, State};

fn main() {
    let count: usize = env::args().nth(1).map_or(500, |count| count.parse().unwrap());
    let node = Node::new();
    fs::create_dir(node.maps_dir()).unwrap();
    let mut manager = Manager::start(&node);
    // One sandbox, so that what is there once is there.
    let mut sandboxes = vec![sandbox(&node)];
    wait_for(&mut manager, 1);
    let (memory, files) = (resident_kib(), open_files());
    println!("with 1 sandbox: {memory} KiB resident, {files} open files");

    sandboxes.extend((1..count).map(|_| sandbox(&node)));
    wait_for(&mut manager, count);
    println!(
        "with {count} sandboxes: {} KiB resident more, {} open files more",
        resident_kib().saturating_sub(memory),
        open_files().saturating_sub(files)
    );
    manager.stop();
    let start = Instant::now();
    let mut manager = Manager::start(&node);
    wait_for(&mut manager, count);
    println!("a restart finds all {count} attached after {:?}", start.elapsed());
    manager.stop();
    for sandbox in &mut sandboxes {
        sandbox.kill().unwrap();
        sandbox.wait().unwrap();
    }
}

/// A process in a network namespace of its own, with interfaces and a pin
/// directory.
fn sandbox(node: &Node) -> Child {
    let setup = "ip link set lo up && ip link add eth0 type veth peer name peer && \
                 echo ready && exec sleep infinity";
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-c", setup])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut ready).unwrap();
    fs::create_dir(node.maps_dir().join(child.id().to_string())).unwrap();
    child
}

fn wait_for(manager: &mut Manager, count: usize) {
    let attached = |state: &State| {
        let mut sandboxes = state.sandboxes.values();
        sandboxes.len() == count
            && sandboxes.all(|sandbox| matches!(sandbox.attachment, Attachment::Attached(_)))
    };
    wait_until("all are attached", || attached(&manager.now()));
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
