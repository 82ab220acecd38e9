//! A redirector that says what it does.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    io::{self, Write},
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use common::{
    can_run,
    manager::{Manager, config},
    node::Node,
    shim::{ask, scale_down},
    wait_until,
};
use zeropod_ebpf_loader::Redirectors;

/// Lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_redirected_packet_is_a_line_in_the_log() {
    if !can_run(&["ip"]) {
        return;
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    // The only test of this process.
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let node = Node::new();
    std::fs::create_dir(node.maps_dir()).unwrap();
    let sandbox = node.sandbox();
    sandbox.make_pin_dir();
    let traced = include_bytes!("traced.o").to_vec();
    let mut manager = Manager::run(Redirectors::new(config(&node)).traced(traced.clone()));
    manager.wait_until_attached(&sandbox);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let proxy = sandbox.serve(any, "proxy");
    scale_down(&sandbox, 80, proxy);
    let said = |what: &str| {
        let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        lines.lines().any(|line| line.contains(" redirector: ") && line.contains(what))
    };
    for address in [sandbox.ipv4(), sandbox.ipv6()] {
        assert_eq!(ask(address, 80).unwrap(), "proxy");
    }
    wait_until("all is said", || {
        said(&format!(" to 80: to proxy {proxy}"))
            && said(&format!(": from proxy {proxy}, as 80"))
            && said(" to 80: activity")
    });
    manager.stop();

    // The next one reads what the same programs say.
    lines.0.lock().unwrap().clear();
    let mut manager = Manager::run(Redirectors::new(config(&node)).traced(traced));
    manager.wait_until_attached(&sandbox);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
    wait_until("it is said again", || said(&format!(" to 80: to proxy {proxy}")));
    manager.stop();
    // And one that wants to hear nothing replaces them.
    Manager::start(&node).attach(&sandbox);
    assert_eq!(ask(sandbox.ipv4(), 80).unwrap(), "proxy");
}
