//! The object is not for this loader alone.

mod common;

use common::{can_run, node::Node, sh};
use zeropod_ebpf_loader::REDIRECTOR;
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM, MAPS, MapKind};

#[test]
fn libbpf_loads_the_object_with_the_contracted_maps() {
    if !can_run(&["bpftool", "ip"]) {
        return;
    }
    let node = Node::new();
    let bpffs = node.bpffs().display();
    let file = tempfile::NamedTempFile::with_suffix(".o").unwrap();
    std::fs::write(&file, REDIRECTOR).unwrap();
    sh(&format!(
        "bpftool prog loadall {} {bpffs}/programs type classifier pinmaps {bpffs}/maps",
        file.path().display()
    ));
    // What the verifier says of them, for whoever reads the output of tests.
    let log = sh(&format!(
        "bpftool --debug prog loadall {} {bpffs}/again type classifier 2>&1",
        file.path().display()
    ));
    for line in log.lines() {
        if line.starts_with("processed ") || line.starts_with("stack depth ") {
            println!("{line}");
        }
    }
    assert!(log.contains("processed "), "the verifier looked at nothing");
    for program in [INGRESS_PROGRAM, EGRESS_PROGRAM] {
        let shown = sh(&format!("bpftool prog show pinned {bpffs}/programs/{program}"));
        assert!(shown.contains("sched_cls"), "{shown}");
    }
    for map in MAPS {
        let shown = sh(&format!("bpftool map show pinned {bpffs}/maps/{}", map.name));
        let kind = match map.kind {
            MapKind::Array => " array ",
            MapKind::Hash => " hash ",
            MapKind::LruHash => " lru_hash ",
            MapKind::RingBuf => " ringbuf ",
        };
        let sizes = format!(
            "key {}B  value {}B  max_entries {}",
            map.key_size, map.value_size, map.max_entries
        );
        assert!(shown.contains(kind) && shown.contains(&sizes), "{}: {shown}", map.name);
        assert!(shown.contains("flags 0x0"), "{}: {shown}", map.name);
    }
}
