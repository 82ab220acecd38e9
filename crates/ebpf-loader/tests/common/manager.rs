//! The redirectors of a node, running.

use std::{fs, sync::mpsc, time::Duration};

use tokio::{runtime, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use zeropod_ebpf_loader::{
    Attachment, Config, ManagedBy, Mechanism, Redirectors, SandboxState, State,
};

use super::{
    node::{Node, Sandbox},
    tap::Tap,
};

/// As a manager has it by default.
pub(crate) fn config(node: &Node) -> Config {
    Config {
        maps_dir: node.maps_dir(),
        host_proc: "/proc".into(),
        probe_binary_name: "kubelet".into(),
        ignore_localhost: true,
    }
}

/// A sandbox that a manager has attached, and left at that.
pub(crate) fn attached(node: &Node) -> Sandbox {
    let sandbox = node.sandbox();
    attach(node, &sandbox);
    sandbox
}

/// The same with an interface that the test is connected to.
pub(crate) fn connected(node: &Node) -> (Sandbox, Tap) {
    let sandbox = node.sandbox();
    let tap = Tap::in_place_of_eth0(&sandbox);
    attach(node, &sandbox);
    (sandbox, tap)
}

fn attach(node: &Node, sandbox: &Sandbox) {
    fs::create_dir_all(node.maps_dir()).unwrap();
    sandbox.make_pin_dir();
    Manager::start(node).attach(sandbox);
}

/// A manager's redirectors, running in the namespaces of the calling thread.
pub(crate) struct Manager {
    runtime: runtime::Runtime,
    shutdown: CancellationToken,
    state: watch::Receiver<State>,
    run: JoinHandle<()>,
}

impl Manager {
    pub(crate) fn start(node: &Node) -> Self {
        Self::run(Redirectors::new(config(node)))
    }

    pub(crate) fn start_with(node: &Node, only: Mechanism) -> Self {
        Self::run(Redirectors::new(config(node)).only(only))
    }

    pub(crate) fn run(redirectors: Redirectors) -> Self {
        let state = redirectors.state();
        let shutdown = CancellationToken::new();
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let run = runtime.spawn(redirectors.run(shutdown.clone()));
        Self { runtime, shutdown, state, run }
    }

    pub(crate) fn now(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn wait_for(&mut self, what: &str, is_so: impl FnMut(&State) -> bool) -> State {
        let wait = async {
            let wait = self.state.wait_for(is_so);
            tokio::time::timeout(Duration::from_secs(30), wait).await.map(|state| {
                // The sender lives as long as the redirectors run.
                state.unwrap().clone()
            })
        };
        let state = self.runtime.block_on(wait);
        state.unwrap_or_else(|_| panic!("waited in vain for {what}: {:?}", self.state.borrow()))
    }

    pub(crate) fn wait_until_attached(&mut self, sandbox: &Sandbox) {
        self.wait_until_attached_by(sandbox, Mechanism::Tcx);
    }

    pub(crate) fn wait_until_attached_by(&mut self, sandbox: &Sandbox, mechanism: Mechanism) {
        let attached = SandboxState {
            managed_by: ManagedBy::Manager,
            attachment: Attachment::Attached(mechanism),
        };
        let pid = sandbox.pid();
        self.wait_for("the sandbox", |state| state.sandboxes.get(&pid) == Some(&attached));
    }

    /// Attaches a sandbox, and leaves it at that.
    pub(crate) fn attach(mut self, sandbox: &Sandbox) {
        self.wait_until_attached(sandbox);
        self.stop();
    }

    /// Does something while the redirectors run no line: their only thread is
    /// taken.
    pub(crate) fn while_it_is_held_up(&self, work: impl FnOnce()) {
        let (taken, wait) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        self.runtime.spawn(async move {
            taken.send(()).unwrap();
            let _released = released.recv();
        });
        wait.recv().unwrap();
        work();
        drop(release);
    }

    pub(crate) fn stop(self) {
        self.shutdown.cancel();
        self.runtime.block_on(self.run).unwrap();
    }

    /// As by SIGKILL: nothing of it runs another line.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_background();
    }
}
