//! The part of the doctor that costs next to nothing: no programs are run,
//! nothing is written, and containerd is asked one question.

use std::path::Path;

use zeropod_shim_api::names::RUNTIME_CLASS;

use super::{Check, REINSTALL, Status, fail, kernel, ok, unknown};
use crate::{
    Error, chain,
    containerd::{Containerd, Handler},
    host::HostRoot,
    state::State,
};

/// Looks at the kernel, and at what containerd serves. For a daemon `host` is
/// the root directory of the host's first process, `/proc/1/root` of the
/// host's proc.
///
/// It takes at most half a minute, with a containerd that hangs; otherwise
/// milliseconds.
pub async fn quick(host: &HostRoot) -> Vec<Check> {
    let mut checks = kernel(host);
    checks.push(handler(host).await);
    checks
}

/// Looks at what containerd serves only: whether somebody has taken the handler
/// away since it was installed (F-B9, F-R9). Unknown where the installer has not
/// been.
pub async fn handler(host: &HostRoot) -> Check {
    let socket = match State::load(host) {
        Ok(State { socket: Some(socket), .. }) => socket,
        Ok(_) => return unknown("handler", "the installer has not been here".into()),
        Err(error) => return unknown("handler", chain(&error)),
    };
    match ask(host, &socket).await {
        Ok(Some(handler)) => judge(host, &handler),
        Ok(None) => fail("handler", "not served", REINSTALL),
        Err(error) => fail("handler", chain(&error), "see containerd's log"),
    }
}

async fn ask(host: &HostRoot, socket: &Path) -> Result<Option<Handler>, Error> {
    let containerd = Containerd::connect(&host.resolve(socket)?).await?;
    let handlers = containerd.handlers().await?;
    Ok(handlers.unwrap_or_default().remove(RUNTIME_CLASS))
}

fn judge(host: &HostRoot, handler: &Handler) -> Check {
    let path = &handler.runtime_path;
    // A handler is served whether its shim exists or not (F-C3).
    if !host.exists(Path::new(path)).unwrap_or(false) {
        return fail("handler", format!("its shim {path} is absent"), REINSTALL);
    }
    let missing = handler.annotations_missing();
    if missing.is_empty() {
        return ok("handler", format!("served with {path}"));
    }
    Check {
        name: "handler",
        status: Status::Warn,
        detail: format!("does not pass on the annotations {}", missing.join(", ")),
        hint: REINSTALL,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zeropod_shim_api::names::POD_ANNOTATIONS;

    use super::*;

    #[test]
    fn a_handler_is_judged_by_its_shim_and_annotations() {
        // F-C3, I5.
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::new(dir.path());
        let handler = |annotations: &[&str]| Handler {
            runtime_path: "/shim".into(),
            runtime_type: "t".into(),
            pod_annotations: Some(annotations.iter().map(|it| (*it).to_owned()).collect()),
            options: None,
        };
        let status = |annotations: &[&str]| judge(&host, &handler(annotations)).status;
        assert_eq!(status(&POD_ANNOTATIONS), Status::Fail);
        fs::write(dir.path().join("shim"), "").unwrap();
        assert_eq!(status(&POD_ANNOTATIONS), Status::Ok);
        assert_eq!(status(&["zeropod.ctrox.dev/*", "io.containerd.runc.*"]), Status::Ok);
        assert_eq!(status(&POD_ANNOTATIONS[1..]), Status::Warn);
        assert_eq!(status(&[]), Status::Warn);
    }
}
