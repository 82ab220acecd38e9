//! The redirectors of a node, running.

use std::{path::PathBuf, time::Duration};

use tokio::{runtime, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use zeropod_ebpf_loader::{
    Attachment, Config, ManagedBy, Mechanism, Redirectors, SandboxState, State,
};

use super::node::{Node, Sandbox};

pub(crate) const ATTACHED: SandboxState = SandboxState {
    managed_by: ManagedBy::Manager,
    attachment: Attachment::Attached(Mechanism::Tcx),
};
/// A manager's redirectors, running in the namespaces of the calling thread.
pub(crate) struct Manager {
    runtime: runtime::Runtime,
    shutdown: CancellationToken,
    state: watch::Receiver<State>,
    run: JoinHandle<()>,
}

impl Manager {
    pub(crate) fn start(node: &Node) -> Self {
        Self::start_on(node, "/proc".into())
    }

    pub(crate) fn start_on(node: &Node, host_proc: PathBuf) -> Self {
        let redirectors = Redirectors::new(Config {
            maps_dir: node.maps_dir(),
            host_proc,
            probe_binary_name: "kubelet".into(),
            ignore_localhost: true,
        });
        let state = redirectors.state();
        let shutdown = CancellationToken::new();
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let run = runtime.spawn(redirectors.run(shutdown.clone()));
        Self { runtime, shutdown, state, run }
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
        let pid = sandbox.pid();
        self.wait_for("the sandbox", |state| state.sandboxes.get(&pid) == Some(&ATTACHED));
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
