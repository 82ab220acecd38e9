//! Whether containerd still serves the handler. The installer has seen it do so,
//! but others may rewrite containerd's configuration, or replace containerd,
//! long after (F-B9, F-R9).

use std::{path::Path, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeropod_installer::{
    doctor::{self, Check, Status},
    host::HostRoot,
};
use zeropod_shim_api::names;
use zeropod_status_api::api::Degraded;

/// Between two looks.
const PAUSE: Duration = Duration::from_mins(1);

/// Looks at containerd every now and then.
pub(crate) struct Containerd {
    host: HostRoot,
    seen: watch::Sender<Seen>,
}

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct Seen(Option<Check>);

impl Containerd {
    /// That of the host of a pod.
    pub(crate) fn of_host() -> Self {
        // Where the pod may not look, nothing is known.
        Self::new(HostRoot::new(Path::new(names::HOST_PROC).join("1/root")))
    }

    fn new(host: HostRoot) -> Self {
        Self { host, seen: watch::Sender::default() }
    }

    /// What was seen last.
    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Looks until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            let look = doctor::handler(&self.host);
            let Some(check) = shutdown.run_until_cancelled(look).await else { return };
            self.seen.send_if_modified(|Seen(seen)| {
                let changed = seen.as_ref() != Some(&check);
                if changed {
                    log(&check);
                    *seen = Some(check);
                }
                changed
            });
            if shutdown.run_until_cancelled(sleep(PAUSE)).await.is_none() {
                return;
            }
        }
    }
}

fn log(check: &Check) {
    let Check { name: _, status, detail, hint } = check;
    match status {
        Status::Ok => info!(detail, "containerd serves the handler"),
        Status::Unknown => info!(detail, "Whether containerd serves the handler is unknown"),
        Status::Warn | Status::Fail => warn!(detail, hint, "containerd and the handler"),
    }
}

/// Pods that run are well, and the node is as ready as before: only new ones
/// fail.
pub(crate) fn wrong(Seen(seen): &Seen) -> Vec<Degraded> {
    let wrong = seen.iter().filter(|it| matches!(it.status, Status::Fail | Status::Warn));
    wrong
        .map(|check| Degraded {
            name: "handler-not-served".into(),
            detail: format!("{} ({})", check.detail, check.hint),
            unready: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn seen_on(files: &[(&str, &str)]) -> Vec<Degraded> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let containerd = Containerd::new(HostRoot::new(dir.path()));
        let mut seen = containerd.seen();
        let shutdown = CancellationToken::new();
        let looking = tokio::spawn(containerd.run(shutdown.clone()));
        let degraded = wrong(&seen.wait_for(|Seen(seen)| seen.is_some()).await.unwrap());
        shutdown.cancel();
        looking.await.unwrap();
        degraded
    }

    #[tokio::test]
    async fn a_handler_that_is_gone_is_told_and_an_unknown_one_is_not() {
        assert_eq!(seen_on(&[]).await, []);
        let state = ("var/lib/zeropod/installer/state.json", r#"{"socket": "/run/none"}"#);
        let [wrong] = &*seen_on(&[state]).await else { panic!("one thing is wrong") };
        assert_eq!((&*wrong.name, wrong.unready), ("handler-not-served", false));
        assert!(wrong.detail.contains("cannot ask containerd"), "{}", wrong.detail);
    }
}
