//! The command line: the flags of the Go installer and ours.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

use crate::{distribution::Distribution, version::ContainerdVersion};

/// Puts the zeropod runtime on a node and configures containerd.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "one field is one flag")]
#[command(name = "zeropod-installer", disable_version_flag = true)]
pub struct Args {
    /// Where CRIU comes from, if not from our image: `file:PATH` of a directory
    /// with bin and lib, of one with an image in the OCI layout, or of an
    /// image's archive. The reference of an image in a registry is used with
    /// -criu-pull only.
    #[arg(long, value_name = "REFERENCE")]
    pub criu_image: Option<String>,
    /// Pull the -criu-image, by the node's containerd, once.
    #[arg(long)]
    pub criu_pull: bool,
    /// Who runs containerd: containerd, k3s, rke2, k0s or microk8s. Found out
    /// by default; it must be what is there.
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<Distribution>,
    /// Directory for the binaries on the host, unless containerd has an opt
    /// directory configured.
    #[arg(long, value_name = "DIR", default_value = "/opt/zeropod")]
    pub host_opt_path: PathBuf,
    /// Remove what was installed.
    #[arg(long)]
    pub uninstall: bool,
    /// Deadline for the whole run.
    #[arg(long, value_name = "DURATION", value_parser = zeropod_go_flags::duration, default_value = "1m")]
    pub timeout: Duration,
    /// Print version, revision and compiler, then exit.
    #[arg(long)]
    pub version: bool,
    /// Name of the process whose probes do not count as traffic.
    #[arg(long, value_name = "NAME", default_value = "kubelet")]
    pub probe_binary_name: String,
    /// Whether traffic from the pod to itself counts.
    #[arg(long, default_value_t = true)]
    pub tracker_ignore_localhost: bool,

    /// Print the plan and the differences and change nothing. Exits with 2 if
    /// there is something to do, 0 if not, 1 if it cannot be told.
    #[arg(long)]
    pub dry_run: bool,
    /// Uninstall although pods use the runtime.
    #[arg(long)]
    pub force: bool,
    /// Directory with the shim and CRIU, in bin and lib.
    #[arg(long, value_name = "DIR", default_value = "/assets")]
    pub assets: PathBuf,
    /// Directory for the files of the node API's certificate authority. If it
    /// does not exist, none is made.
    #[arg(long, value_name = "DIR", default_value = "/tls")]
    pub tls_dir: PathBuf,
    /// Where the host's root directory is mounted. By default /host if that
    /// exists, else /.
    #[arg(long, value_name = "DIR")]
    pub host_root: Option<PathBuf>,
    /// containerd's configuration file on the host.
    #[arg(long, value_name = "FILE")]
    pub containerd_config: Option<PathBuf>,
    /// containerd's socket on the host.
    #[arg(long, value_name = "SOCKET")]
    pub containerd_socket: Option<PathBuf>,
    /// Version of containerd, if it does not run and cannot be asked.
    #[arg(long, value_name = "VERSION")]
    pub containerd_version: Option<ContainerdVersion>,
    /// Whether the handler uses the systemd cgroup driver. The default runtime's by default.
    #[arg(long, value_name = "BOOL", value_parser = zeropod_go_flags::boolean)]
    pub systemd_cgroup: Option<bool>,

    /// Something else than installing.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program can do besides installing.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Mount the BPF file system on /sys/fs/bpf, unless it is there.
    PrepareBpfFs,
    /// Be the process that the doctor dumps.
    #[command(hide = true)]
    CriuTarget {
        /// File for the process id.
        pid_file: PathBuf,
    },
    /// Look at everything that zeropod needs on this node. Exits with 1 if
    /// zeropods cannot work.
    Doctor {
        /// How to print it.
        #[arg(long = "o", value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
        output: Format,
    },
}

/// How the doctor reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: an array of objects with name, status, detail and hint.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        zeropod_go_flags::parse(["zeropod-installer"].iter().chain(args).copied())
    }

    #[test]
    fn the_arguments_of_the_go_manifests_are_taken() {
        let args = parse(&[
            "-criu-image=registry.example/zeropod-criu:v4.2",
            "-runtime=k3s",
            "-probe-binary-name=k3s",
            "-tracker-ignore-localhost=true",
            "-host-opt-path=/var/lib/toolbox/zeropod",
            "-timeout",
            "5m0s",
            "-uninstall",
        ])
        .unwrap();
        assert_eq!(args.runtime, Some(Distribution::K3s));
        assert_eq!(args.timeout, Duration::from_mins(5));
        assert!(args.uninstall && args.tracker_ignore_localhost && !args.dry_run);
        assert_eq!(args.probe_binary_name, "k3s");
    }

    #[test]
    fn defaults_are_those_of_the_go_installer() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.host_opt_path, PathBuf::from("/opt/zeropod"));
        assert_eq!(args.timeout, Duration::from_mins(1));
        assert_eq!(args.probe_binary_name, "kubelet");
        assert!(args.tracker_ignore_localhost && !args.uninstall && args.runtime.is_none());
    }

    #[test]
    fn the_second_init_container_has_a_subcommand() {
        assert_eq!(parse(&["prepare-bpf-fs"]).unwrap().command, Some(Command::PrepareBpfFs));
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (bad, needle) in [
            (&["-runtime=cri-o"][..], "use one of containerd, k3s"),
            (&["-containerd-version=latest"], "not of the form 2.1.4"),
            (&["-nope"], "--nope"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
