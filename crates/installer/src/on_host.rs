//! Running programs of the host: as units of its systemd, because they need the
//! host's libraries and processes, and because a pod has no other way that is
//! not `nsenter`.

use std::{
    fs::File,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use crate::{Error, chain, config::Source as _, node::Node, selinux, state, systemd::unit_name};

/// How long a script may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRun {
    /// Nothing can be run on the host.
    Impossible,
    /// It was run, or cannot be, and this is why.
    Failed(String),
}

/// Runs a program below the opt directory with one argument, and returns the
/// first lines that it prints.
///
/// # Errors
/// When it is absent or fails.
pub fn version(
    node: &mut Node,
    opt_path: &Path,
    program: &str,
    argument: &str,
) -> Result<String, NotRun> {
    let script = "LD_LIBRARY_PATH=\"$1/lib\" exec \"$1/bin/$2\" \"$3\"";
    let opt = opt_path.to_string_lossy();
    let printed = run(node, script, &[&opt, program, argument])?;
    Ok(printed.lines().take(3).map(str::trim).collect::<Vec<_>>().join(", "))
}

/// Dumps a process with a listening TCP socket by CRIU and brings it back.
///
/// # Errors
/// When any of it fails; the reason is CRIU's own.
pub fn checkpoint(node: &mut Node, opt_path: &Path) -> Result<String, NotRun> {
    // The process is this program, since every host has that at least.
    let target = Path::new(state::DIR).join("criu-target");
    let dir = Path::new(state::DIR).join("checkpoint");
    let copy = || {
        let mut own = File::open("/proc/self/exe").map_err(Error::io("open", "/proc/self/exe"))?;
        node.host.make_dirs(Path::new(state::DIR))?;
        node.host.replace_as(&target, &mut own, 0o755, Some(selinux::PROGRAM))
    };
    copy().map_err(|error| NotRun::Failed(chain(&error)))?;
    let arguments = [opt_path, &target, &dir].map(|path| path.to_string_lossy().into_owned());
    let [opt, program, dir] = &arguments;
    let result = run(node, CHECKPOINT, &[opt, program, dir]);
    node.host.remove(&target).map_err(|error| NotRun::Failed(chain(&error)))?;
    result.map(|_| "a process with a listening socket was dumped and restored".into())
}

/// Arguments: opt directory, program to run, directory for the images.
const CHECKPOINT: &str = r#"
opt=$1 target=$2 dir=$3
export LD_LIBRARY_PATH="$opt/lib"
rm -rf "$dir"
mkdir "$dir" || exit 1
"$target" criu-target "$dir/pid" </dev/null >/dev/null 2>&1 &
tries=0
while [ ! -s "$dir/pid" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
pid=$(cat "$dir/pid") || exit 1
criu() {
  log=$1.log
  "$opt/bin/criu" "$@" -D "$dir" -o "$log" --manage-cgroups=ignore && return
  reason=$(grep -m 1 Error "$dir/$log")
  kill -9 "$pid" 2>/dev/null
  rm -rf "$dir"
  echo "criu $1: ${reason:-it gives no reason}"
  exit 1
}
criu dump -t "$pid"
criu restore -d
kill -0 "$pid" || { echo "the restored process is gone"; exit 1; }
kill -9 "$pid"
rm -rf "$dir"
"#;

/// The process that [`checkpoint`] dumps: a session of its own with a
/// listening socket. It tells its process id by the file, and ends by being
/// killed, or by itself after a while.
///
/// # Errors
/// When it cannot listen or tell.
pub fn be_dumped(pid_file: &Path) -> Result<(), Error> {
    // Fails only for a leader of a group, which has a session already.
    let _ = nix::unistd::setsid();
    let _listener = TcpListener::bind("127.0.0.1:0").map_err(Error::io("listen for", pid_file))?;
    std::fs::write(pid_file, std::process::id().to_string())
        .map_err(Error::io("write", pid_file))?;
    std::thread::sleep(LIMIT * 2);
    Ok(())
}

/// Runs a shell script and returns what it prints.
fn run(node: &mut Node, script: &str, arguments: &[&str]) -> Result<String, NotRun> {
    let failed = |error: Error| NotRun::Failed(chain(&error));
    let host = node.host.clone();
    host.make_dirs(Path::new(state::DIR)).map_err(failed)?;
    let output = Path::new(state::DIR).join("output.txt");
    let Some(systemd) = node.systemd().map_err(failed)? else { return Err(NotRun::Impossible) };
    // The last argument is where to print to.
    let script = format!("exec >\"${{{}}}\" 2>&1\n{script}", arguments.len() + 1);
    let out = output.to_string_lossy();
    let command = [&["/bin/sh", "-c", &script, "sh"][..], arguments, &[&out]].concat();
    let code = systemd.run(&unit_name("run"), &command, Instant::now() + LIMIT);
    let printed = host.read(&output).map_err(failed)?.unwrap_or_default();
    host.remove(&output).map_err(failed)?;
    let printed = String::from_utf8_lossy(&printed).trim().to_owned();
    match code.map_err(failed)? {
        0 => Ok(printed),
        code => {
            let last = printed.lines().last().unwrap_or("it prints nothing").to_owned();
            Err(NotRun::Failed(format!("exit code {code}: {last}")))
        }
    }
}
