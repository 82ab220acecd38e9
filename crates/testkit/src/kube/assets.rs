//! `kube-apiserver` and `etcd` as released, from a directory such as
//! `setup-envtest` fills, instead of the program built here.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use kube::Client;
use rcgen::KeyPair;
use serde_json::json;

use super::{ApiError, io_error, process::Process, real, wait};

const START_DEADLINE: Duration = Duration::from_mins(2);

/// Runs both until its standard input ends or one of them does; $1 is the
/// directory for all they write, $2 that of the programs, $3 and $4 are their ports.
const SCRIPT: &str = r#"
dir=$1 assets=$2 port=$3 store=http://127.0.0.1:$4; shift 4
# Whoever reads the log may be gone first.
trap '' PIPE
exec 3<&0
nobody=http://127.0.0.1:0
"$assets/etcd" --data-dir "$dir/etcd" --log-level error \
    --listen-client-urls "$store" --advertise-client-urls "$store" \
    --listen-peer-urls $nobody --initial-advertise-peer-urls $nobody --initial-cluster default=$nobody &
etcd=$!
"$assets/kube-apiserver" --etcd-servers "$store" --bind-address 127.0.0.1 --secure-port "$port" \
    --advertise-address 127.0.0.1 --endpoint-reconciler-type none --cert-dir "$dir/tls" \
    --token-auth-file "$dir/tokens.csv" --authorization-mode Node,RBAC --allow-privileged \
    --service-cluster-ip-range 10.96.0.0/16 --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$dir/service-account.pub" \
    --service-account-signing-key-file "$dir/service-account.key" "$@" &
server=$!
{ cat <&3 >/dev/null; kill -9 $server; } &
watcher=$!
wait $server
# Later its number may be another's.
kill -9 $watcher $etcd
wait $etcd
rm -rf "$dir"
"#;

/// Starts both and waits until they serve; returns their kubeconfig, too.
pub(super) fn start(assets: &Path, flags: &[&str]) -> Result<(Process, PathBuf), ApiError> {
    let dir = tempfile::Builder::new().prefix("zeropod-kube-apiserver-").tempdir();
    // The script removes it, also when this process is killed.
    let dir = dir.map_err(io_error("make a directory for", assets))?.keep();
    let [port, store] = free_ports().map_err(io_error("find ports for", assets))?;
    let kubeconfig = write_credentials(&dir, port)?;
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "sh"])
        .args([&dir, assets])
        .args([port, store].map(|port| port.to_string()))
        .args(flags);
    let (mut process, _) = Process::start(&mut command)?;

    let deadline = Instant::now() + START_DEADLINE;
    while !is_ready(&kubeconfig) {
        if process.has_ended() || Instant::now() > deadline {
            return Err(ApiError::NotReady(format!(
                "{} does not serve; {}",
                assets.display(),
                process.log()
            )));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok((process, kubeconfig))
}

/// Two that were free a moment ago; the released programs take no listener.
fn free_ports() -> io::Result<[u16; 2]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (one, two) = (bind()?, bind()?);
    Ok([one.local_addr()?.port(), two.local_addr()?.port()])
}

fn write_credentials(dir: &Path, port: u16) -> Result<PathBuf, ApiError> {
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(io_error("write", &path)).map(|()| path)
    };
    let key = KeyPair::generate().map_err(io::Error::other);
    let key = key.map_err(io_error("make a key in", dir))?;
    write("service-account.key", key.serialize_pem())?;
    write("service-account.pub", key.public_key_pem())?;
    let random = || RandomState::new().build_hasher().finish();
    let token = format!("{:016x}{:016x}", random(), random());
    write("tokens.csv", format!("{token},admin,admin,system:masters\n"))?;
    let cluster = json!({
        "server": format!("https://127.0.0.1:{port}"),
        "certificate-authority": dir.join("tls/apiserver.crt"),
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    });
    write("kubeconfig", config.to_string())
}

fn is_ready(kubeconfig: &Path) -> bool {
    let ask = async {
        let client = Client::try_from(real::config(kubeconfig).ok()?).ok()?;
        let request = axum::http::Request::get("/readyz").body(Vec::new()).ok()?;
        client.request_text(request).await.ok()
    };
    matches!(wait(ask), Ok(Some(_)))
}
