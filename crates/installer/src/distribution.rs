//! Kubernetes distributions: where each keeps containerd's configuration and
//! who restarts it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{Error, config::Source, host::HostRoot};

/// Who runs containerd on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// containerd by itself: kubeadm, kind, AKS, EKS, GKE.
    Containerd,
    /// k3s, also in k3d.
    K3s,
    /// RKE2.
    Rke2,
    /// k0s.
    K0s,
    /// `MicroK8s`.
    Microk8s,
}

/// Where a distribution keeps things. All paths are the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Which one.
    pub distribution: Distribution,
    /// The file that containerd is started with.
    pub config: PathBuf,
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// The units that can be the one that runs it.
    pub units: Vec<String>,
    /// The program that a distribution brings and runs as a child of its own.
    pub program: Option<PathBuf>,
    /// Why a pod cannot change the configuration, on systems that are made
    /// elsewhere. What they have already can be used.
    pub immutable: Option<String>,
}

impl Distribution {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Containerd, Self::K3s, Self::Rke2, Self::K0s, Self::Microk8s];

    /// Where it keeps things unless told otherwise.
    pub fn layout(self) -> Layout {
        let (config, socket, units): (&str, &str, &[&str]) = match self {
            Self::Containerd => (
                "/etc/containerd/config.toml",
                "/run/containerd/containerd.sock",
                &["containerd.service"],
            ),
            Self::K3s => (
                "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
                "/run/k3s/containerd/containerd.sock",
                &["k3s.service", "k3s-agent.service", "k3s-*.service"],
            ),
            Self::Rke2 => (
                "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
                "/run/k3s/containerd/containerd.sock",
                &["rke2-server.service", "rke2-agent.service"],
            ),
            Self::K0s => (
                "/etc/k0s/containerd.toml",
                "/run/k0s/containerd.sock",
                &["k0sworker.service", "k0scontroller.service"],
            ),
            Self::Microk8s => (
                "/var/snap/microk8s/current/args/containerd.toml",
                "/var/snap/microk8s/common/run/containerd.sock",
                &["snap.microk8s.daemon-containerd.service"],
            ),
        };
        Layout {
            distribution: self,
            config: config.into(),
            socket: socket.into(),
            units: units.iter().map(|unit| (*unit).to_owned()).collect(),
            program: self.program().map(PathBuf::from),
            immutable: None,
        }
    }

    fn program(self) -> Option<&'static str> {
        match self {
            Self::Containerd => None,
            Self::K3s => Some("/var/lib/rancher/k3s/data/current/bin/containerd"),
            Self::Rke2 => Some("/var/lib/rancher/rke2/bin/containerd"),
            Self::K0s => Some("/var/lib/k0s/bin/containerd"),
            Self::Microk8s => Some("/snap/microk8s/current/bin/containerd"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::K0s => "k0s",
            Self::Microk8s => "microk8s",
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|one| one.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("unknown runtime {text:?}: use one of {names}")
        })
    }
}

/// Finds out who runs containerd, and checks what was declared against it
/// (F-B4). `active` are those whose units systemd runs, if it could be asked.
///
/// # Errors
/// When nothing or more than one is found, and when the declared one is not
/// there.
pub fn detect(
    host: &HostRoot,
    declared: Option<Distribution>,
    active: &[Distribution],
) -> Result<Layout, Error> {
    if let Some(layout) = immutable(host)? {
        return Ok(layout);
    }
    let mut found = Vec::new();
    for distribution in Distribution::ALL {
        let layout = distribution.layout();
        let serves = host.exists(&layout.socket)?;
        if host.exists(&layout.config)? {
            found.push((distribution, serves));
        } else if serves && distribution == Distribution::Containerd {
            // It runs on its defaults (F-A12).
            found.push((distribution, true));
        }
    }
    // Left-overs of a distribution that was here before have no socket.
    let serving: Vec<Distribution> =
        found.iter().filter(|(_, serves)| *serves).map(|(distribution, _)| *distribution).collect();
    let present: Vec<Distribution> = found.iter().map(|(distribution, _)| *distribution).collect();
    let candidates = if serving.is_empty() { present } else { serving };
    // k3s and RKE2 have the same socket; only systemd tells them apart.
    let running: Vec<Distribution> =
        candidates.iter().copied().filter(|it| active.contains(it)).collect();
    let candidates = if running.is_empty() { candidates } else { running };
    let list = |all: &[Distribution]| {
        all.iter().map(Distribution::to_string).collect::<Vec<_>>().join(", ")
    };
    match (declared, candidates.as_slice()) {
        (Some(declared), candidates) if candidates.contains(&declared) => Ok(declared.layout()),
        (Some(declared), []) => Err(Error::Detection(format!(
            "no sign of {declared}: neither {} nor {} exists. Is the host mounted?",
            declared.layout().config.display(),
            declared.layout().socket.display(),
        ))),
        (Some(declared), others) => Err(Error::Detection(format!(
            "-runtime says {declared}, but this node runs {}",
            list(others)
        ))),
        (None, [one]) => Ok(one.layout()),
        (None, []) => Err(Error::Detection(
            "no containerd found: no configuration and no socket where any known distribution has them. Is the host mounted?".into(),
        )),
        (None, several) => Err(Error::Detection(format!(
            "more than one containerd found ({}): say with -runtime which one Kubernetes uses",
            list(several)
        ))),
    }
}

/// Systems that make their files anew at every boot or update (F-B7).
fn immutable(host: &HostRoot) -> Result<Option<Layout>, Error> {
    let Some(os_release) = host.read(Path::new("/etc/os-release"))? else { return Ok(None) };
    let text = String::from_utf8_lossy(&os_release);
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("ID="))
        .map_or("", |id| id.trim().trim_matches(['"', '\'']));
    let mut layout = Distribution::Containerd.layout();
    let way = match id {
        "talos" => {
            layout.config = "/etc/cri/containerd.toml".into();
            layout.units.clear();
            "add a machine configuration patch that writes /etc/cri/conf.d/20-customization.part, and a system extension with the binaries"
        }
        "bottlerocket" => "its containerd settings and /opt come from a custom variant",
        _ => return Ok(None),
    };
    layout.immutable = Some(format!(
        "{id} does not let a pod change its container runtime: {way}; deploy/static/zeropod.toml has the tables to use"
    ));
    Ok(Some(layout))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn detected(paths: &[&str], declared: Option<Distribution>) -> Result<Distribution, String> {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "ID=debian\n").unwrap();
        }
        detect(&HostRoot::new(dir.path()), declared, &[])
            .map(|layout| layout.distribution)
            .map_err(|error| error.to_string())
    }

    const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
    const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd/config.toml";
    const K3S_SOCKET: &str = "/run/k3s/containerd/containerd.sock";
    const PLAIN: &str = "/etc/containerd/config.toml";
    const PLAIN_SOCKET: &str = "/run/containerd/containerd.sock";

    #[test]
    fn what_is_there_decides() {
        use Distribution::{Containerd, K0s, K3s, Microk8s, Rke2};
        for (paths, expected) in [
            (&[PLAIN][..], Containerd),
            (&[PLAIN_SOCKET], Containerd),
            (&[K3S, K3S_SOCKET, PLAIN], K3s),
            (&[RKE2, K3S_SOCKET], Rke2),
            (&["/etc/k0s/containerd.toml"], K0s),
            (&["/var/snap/microk8s/current/args/containerd.toml", "/etc/os-release"], Microk8s),
            (&[K3S, PLAIN, PLAIN_SOCKET], Containerd),
        ] {
            assert_eq!(detected(paths, None), Ok(expected), "{paths:?}");
            assert_eq!(detected(paths, Some(expected)), Ok(expected), "{paths:?}");
        }
    }

    #[test]
    fn contradictions_and_ambiguities_are_errors() {
        // F-B4.
        for (paths, declared, needle) in [
            (&[][..], None, "no containerd found"),
            (&[], Some(Distribution::K3s), "no sign of k3s"),
            (
                &[PLAIN, PLAIN_SOCKET],
                Some(Distribution::K3s),
                "says k3s, but this node runs containerd",
            ),
            (&[K3S, RKE2, K3S_SOCKET], None, "more than one containerd found (k3s, rke2)"),
        ] {
            let error = detected(paths, declared).unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
        assert_eq!(
            detected(&[K3S, RKE2, K3S_SOCKET], Some(Distribution::Rke2)),
            Ok(Distribution::Rke2)
        );
    }

    #[test]
    fn immutable_systems_are_recognised() {
        // F-B7.
        for (id, config) in [("talos", "/etc/cri/containerd.toml"), ("\"bottlerocket\"", PLAIN)] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("etc")).unwrap();
            fs::write(dir.path().join("etc/os-release"), format!("NAME=x\nID={id}\n")).unwrap();
            let layout = detect(&HostRoot::new(dir.path()), None, &[]).unwrap();
            assert!(layout.immutable.unwrap().contains("does not let a pod change"));
            assert_eq!(layout.config, Path::new(config));
        }
    }
}
