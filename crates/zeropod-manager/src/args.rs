//! The command line: every flag of the Go manager 0.12, in Go's style.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::Parser;
use zeropod_ebpf_loader::Mechanism;
use zeropod_go_flags::duration;

use crate::command::Command;

/// The zeropod node daemon: loads the traffic redirectors of the node's
/// sandboxes, and turns what its shims report into metrics, status labels,
/// events and in-place resizes of pods.
///
/// Needs `NODE_NAME` in its environment when it writes to pods.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "a flag each")]
#[command(name = "zeropod-manager", disable_version_flag = true)]
pub(crate) struct Args {
    /// Address of the metrics and health endpoints; empty for none.
    #[arg(long, value_name = "ADDR", value_parser = listen, default_value = ":8080")]
    pub(crate) metrics_addr: Listen,

    /// Address of the status page and its API, which have no password; empty
    /// for none.
    #[arg(long, value_name = "ADDR", value_parser = listen, default_value = STATUS_ADDR)]
    pub(crate) status_addr: Listen,

    /// Socket by which the subcommands change this process.
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub(crate) control_socket: PathBuf,

    /// Address of the node API for other nodes.
    #[arg(long, value_name = "ADDR", default_value = ":8090")]
    pub(crate) node_server_addr: ListenAddr,

    /// Log at debug level.
    #[arg(long)]
    pub(crate) debug: bool,

    /// Shrink the resource requests of scaled-down containers.
    #[arg(long)]
    pub(crate) in_place_scaling: bool,

    /// Keep a status label for each container of a pod.
    #[arg(long)]
    pub(crate) status_labels: bool,

    /// Create an event for each scaling.
    #[arg(long)]
    pub(crate) status_events: bool,

    /// Put the end of CRIU's log into the events of failures. It can name files
    /// and addresses of the container, to everyone who may read events.
    #[arg(long)]
    pub(crate) event_log_excerpt: bool,

    /// Kubeconfig file, instead of KUBECONFIG or the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Name of the process that sends liveness probes. Deprecated here: only
    /// for sandboxes of shims up to 0.11; newer shims get it from the
    /// installer.
    #[arg(long, value_name = "NAME", default_value = "kubelet")]
    pub(crate) probe_binary_name: String,

    /// Do not count connections from localhost as activity. Deprecated here,
    /// as -probe-binary-name.
    #[arg(long, default_value_t = true)]
    pub(crate) tracker_ignore_localhost: bool,

    /// Put the redirector of this version in place of those that shims from
    /// 0.12 on attach themselves.
    #[arg(long, default_value_t = true)]
    pub(crate) replace_shim_programs: bool,

    /// Attach redirectors only by this mechanism: for tests of the other one on
    /// a new kernel.
    #[arg(long, hide = true, value_name = "MECHANISM", value_parser = mechanism)]
    pub(crate) attach_mechanism: Option<Mechanism>,

    /// Print version, revision and compiler.
    #[arg(long)]
    pub(crate) version: bool,

    #[command(flatten)]
    pub(crate) migrations: Migrations,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where the status page is unless a flag says otherwise: loopback, since the
/// pod network is not trusted.
pub(crate) const STATUS_ADDR: &str = "127.0.0.1:8091";

/// Where the control socket is unless a flag says otherwise.
pub(crate) const CONTROL_SOCKET: &str = "/run/zeropod/manager.sock";

/// Settings of the node API and of migrations.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_field_names, reason = "the flags of the Go manager")]
pub(crate) struct Migrations {
    /// Reconciliations at the same time, for each controller.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) max_concurrent_reconciles: usize,

    /// How long the transfer of a live migration's pages may take.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5m")]
    pub(crate) pages_transfer_timeout: Duration,

    /// How long a target waits for the servers of its source.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) migration_servers_timeout: Duration,

    /// How long a source waits for a target to claim its migration.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(crate) migration_claim_timeout: Duration,

    /// How long a source waits for its target to be ready.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5m")]
    pub(crate) migration_ready_timeout: Duration,

    /// Let Kubernetes remove migrations whose pods are gone.
    #[arg(long, default_value_t = true)]
    pub(crate) auto_gc_migrations: bool,
}

fn mechanism(name: &str) -> Result<Mechanism, String> {
    [Mechanism::Tcx, Mechanism::Clsact]
        .into_iter()
        .find(|mechanism| mechanism.as_str() == name)
        .ok_or_else(|| "it is tcx or clsact".into())
}

/// An address to listen on, or none.
pub(crate) type Listen = Option<ListenAddr>;

fn listen(text: &str) -> Result<Listen, String> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// An address to listen on, `host:port`. Without a host, on every address of
/// both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenAddr {
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("a ':' and a port are missing")?;
        let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').ok_or("a ']' is missing")?,
            None if host.contains(':') => return Err("an IPv6 address needs '[' and ']'".into()),
            None => host,
        };
        Ok(Self { host: (!host.is_empty()).then(|| host.to_owned()), port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.as_deref().unwrap_or_default() {
            v6 if v6.contains(':') => write!(f, "[{v6}]:{port}"),
            host => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Args, clap::Error> {
        zeropod_go_flags::parse(["zeropod-manager"].into_iter().chain(args.split_whitespace()))
    }

    #[test]
    fn go_style_flags_are_understood() {
        for debug in ["-debug", "--debug", "-debug=true", "-debug=1", "--debug=T"] {
            assert!(parse(debug).unwrap().debug, "{debug}");
        }
        let args = parse(
            "-debug=false -metrics-addr=:9000 --node-server-addr 127.0.0.1:1 -in-place-scaling \
             -status-labels=true -status-events -kubeconfig /k -probe-binary-name k3s \
             -tracker-ignore-localhost=false -max-concurrent-reconciles 3 \
             -pages-transfer-timeout 1m30s -migration-servers-timeout=1s \
             -migration-claim-timeout 2s -migration-ready-timeout 3s -auto-gc-migrations=false",
        )
        .unwrap();
        assert!(!args.debug && args.in_place_scaling && args.status_labels && args.status_events);
        assert_eq!(args.metrics_addr, Some(ListenAddr { host: None, port: 9000 }));
        assert_eq!(args.probe_binary_name, "k3s");
        assert!(!args.tracker_ignore_localhost && !args.migrations.auto_gc_migrations);
        assert_eq!(args.migrations.pages_transfer_timeout, Duration::from_secs(90));
    }

    #[test]
    fn the_page_is_on_loopback_and_either_server_can_be_off() {
        let args = parse("").unwrap();
        assert_eq!(
            args.status_addr,
            Some(ListenAddr { host: Some("127.0.0.1".into()), port: 8091 })
        );
        let args = parse("-metrics-addr= -status-addr=").unwrap();
        assert_eq!((args.metrics_addr, args.status_addr), (None, None));
    }

    #[test]
    fn subcommands_have_flags_of_their_own() {
        for (args, expected) in [
            ("status", "Some(Status { output: Table, watch: false, addr: 127.0.0.1:8091 })"),
            (
                "-debug status -o wide --watch -addr=[::1]:80",
                "Some(Status { output: Wide, watch: true, addr: [::1]:80 })",
            ),
            (
                "status -output=json",
                "Some(Status { output: Json, watch: false, addr: 127.0.0.1:8091 })",
            ),
            (
                "log-level debug",
                "Some(LogLevel { level: Some(Debug), socket: \"/run/zeropod/manager.sock\" })",
            ),
            ("log-level -socket /s", "Some(LogLevel { level: None, socket: \"/s\" })"),
        ] {
            assert_eq!(format!("{:?}", parse(args).unwrap().command), expected, "{args}");
        }
        for args in ["no-such-command", "status -o yaml", "log-level loud", "status x"] {
            parse(args).unwrap_err();
        }
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (args, part) in [
            ("-no-such-flag", "no-such-flag"),
            ("-metrics-addr=8080", "--metrics-addr"),
            ("-metrics-addr=::1:80", "--metrics-addr"),
            ("-debug=maybe", "--debug"),
            ("-migration-claim-timeout=5", "--migration-claim-timeout"),
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(part), "{args}: {error}");
        }
    }

    #[test]
    fn addresses_have_an_optional_host() {
        for (text, host, port) in [
            (":8080", None, 8080),
            ("127.0.0.1:0", Some("127.0.0.1"), 0),
            ("[::1]:80", Some("::1"), 80),
            ("localhost:1", Some("localhost"), 1),
        ] {
            let addr = ListenAddr { host: host.map(str::to_owned), port };
            assert_eq!(addr.to_string(), text);
            assert_eq!(text.parse(), Ok(addr), "{text}");
        }
    }
}
