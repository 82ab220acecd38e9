//! The host's systemd over its private socket, `/run/systemd/private`: the
//! only one that a pod with `/run/systemd` mounted can reach, without
//! `systemctl`, `nsenter` or the host's process namespace.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use thiserror::Error;
use zvariant::{OwnedObjectPath, OwnedValue, Value};

use crate::{Error, host::HostRoot};

mod wire;

use wire::Connection;

/// A connection to systemd.
pub struct Systemd {
    connection: Connection,
}

/// What became of a request to systemd.
#[derive(Debug, Error)]
pub enum Failure {
    /// The socket is absent or broke.
    #[error("its socket failed")]
    Io(#[source] io::Error),
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Deadline,
    /// It answered something that D-Bus does not allow.
    #[error("{0}")]
    Protocol(String),
    /// It refused.
    #[error("{text} ({name})")]
    Answer {
        /// Name of the D-Bus error.
        name: String,
        /// What it says.
        text: String,
    },
    /// The job that it made did not succeed.
    #[error("the job ended with {result:?}, the unit with {unit:?}")]
    Job {
        /// Result of the job, such as `failed`.
        result: String,
        /// `Result` of the unit, such as `start-limit-hit`.
        unit: String,
    },
}

/// An active unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Since when it is active.
    pub since: SystemTime,
    /// The command that it runs, variables in it replaced.
    pub command: Vec<String>,
}

impl Failure {
    /// Whether the same may work a moment later: systemd could not even start
    /// the program, or somebody else restarted the unit at the same time.
    fn is_transient(&self) -> bool {
        match self {
            Self::Job { result, unit } => result == "canceled" || unit == "resources",
            _ => false,
        }
    }
}

const SOCKET: &str = "/run/systemd/private";
const MANAGER: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const UNIT_INTERFACE: &str = "org.freedesktop.systemd1.Unit";
const SERVICE_INTERFACE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES_INTERFACE: &str = "org.freedesktop.DBus.Properties";

/// How long a question may take that systemd answers from memory.
const ANSWER: Duration = Duration::from_secs(10);

/// How long to wait before a failed restart is tried again, each time.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Element of `ExecStart`: path, arguments, whether a failure is ignored, and
/// times and outcome of the last run.
type ExecCommand = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

/// Element of `ListUnitsByPatterns`: name, description, load state, active
/// state, sub state, following, path, job id, job type, job path.
type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl Systemd {
    /// Connects. `None` if the host has no systemd.
    ///
    /// # Errors
    /// When it is there and does not answer.
    pub fn connect(host: &HostRoot) -> Result<Option<Self>, Error> {
        if !host.exists(Path::new(SOCKET))? {
            return Ok(None);
        }
        let open = || {
            let socket = host.resolve(Path::new(SOCKET))?;
            let connection = Connection::open(&socket, Instant::now() + ANSWER)
                .map_err(failed("connect to", SOCKET))?;
            let mut systemd = Self { connection };
            // Without it no signal comes.
            systemd.manager::<_, ()>("Subscribe", &()).map_err(failed("subscribe to", SOCKET))?;
            Ok(Some(systemd))
        };
        open()
    }

    /// The active units with these names or patterns, those that come first in
    /// the list first.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn active_units(&mut self, names: &[String]) -> Result<Vec<Unit>, Error> {
        let label = names.join(", ");
        let mut units = Vec::new();
        for name in names {
            let states: [&str; 0] = [];
            let listed: (Vec<ListedUnit>,) = self
                .manager("ListUnitsByPatterns", &(states.as_slice(), [name.as_str()].as_slice()))
                .map_err(failed("list", &label))?;
            for (name, _, _, active, _, _, path, ..) in listed.0 {
                let known = units.iter().any(|unit: &Unit| unit.name == name);
                if matches!(active.as_str(), "active" | "reloading") && !known {
                    let unit = self.unit(name.clone(), path.as_str());
                    units.push(unit.map_err(failed("look at", &name))?);
                }
            }
        }
        Ok(units)
    }

    /// Restarts a unit and waits until it has started, at most until
    /// `deadline`. A failure that is not the unit's own, such as a moment
    /// without memory, is followed by two more attempts.
    ///
    /// # Errors
    /// When it has not started by then or the job did not succeed (F-C6, I13).
    pub fn restart(&mut self, name: &str, deadline: Instant) -> Result<(), Error> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let Err(failure) = self.restart_once(name, deadline) else { return Ok(()) };
            match pauses.next().filter(|pause| Instant::now() + *pause < deadline) {
                Some(pause) if failure.is_transient() => std::thread::sleep(pause),
                _ => return Err(failed("restart", name)(failure)),
            }
        }
    }

    fn restart_once(&mut self, name: &str, deadline: Instant) -> Result<(), Failure> {
        // Restarts of others count towards the start limit of the unit; ours
        // should not fail for that.
        if let Err(failure) = self.manager::<_, ()>("ResetFailedUnit", &(name,))
            && !matches!(failure, Failure::Answer { .. })
        {
            return Err(failure);
        }
        let job: (OwnedObjectPath,) = self.manager("RestartUnit", &(name, "replace"))?;
        self.wait_for(&job.0, name, deadline)
    }

    /// Runs a command on the host as a unit of its own, which must be a new
    /// one, at most until `deadline`, and returns its exit code.
    ///
    /// # Errors
    /// When systemd does not run it, or it does not end in time.
    pub fn run(&mut self, unit: &str, command: &[&str], deadline: Instant) -> Result<i32, Error> {
        let mut run = || {
            let program = command.first().copied().unwrap_or_default();
            let timeout = deadline.saturating_duration_since(Instant::now());
            let timeout = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
            // systemd would replace variables, and halves what is doubled.
            let command: Vec<String> =
                command.iter().map(|argument| argument.replace('$', "$$")).collect();
            let properties: Vec<(&str, Value<'_>)> = vec![
                ("Description", "zeropod installer".into()),
                ("Type", "oneshot".into()),
                ("ExecStart", Value::new(vec![(program, command, false)])),
                ("TimeoutStartUSec", timeout.into()),
            ];
            let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
            let job: (OwnedObjectPath,) =
                self.manager("StartTransientUnit", &(unit, "fail", properties, auxiliary))?;
            match self.wait_for(&job.0, unit, deadline) {
                Ok(()) => Ok(0),
                Err(Failure::Job { result, unit: outcome }) if outcome == "exit-code" => {
                    let status = self.exit_status(unit)?;
                    let _ = self.manager::<_, ()>("ResetFailedUnit", &(unit,));
                    if status == 0 {
                        Err(Failure::Job { result, unit: outcome })
                    } else {
                        Ok(status)
                    }
                }
                Err(failure) => Err(failure),
            }
        };
        run().map_err(failed("run", unit))
    }

    /// Waits for the end of a job.
    fn wait_for(
        &mut self,
        job: &OwnedObjectPath,
        unit: &str,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.connection.set_deadline(deadline);
        let result = loop {
            let signal = self.connection.signal()?;
            if signal.member == "JobRemoved" {
                let (_, path, _, result): (u32, OwnedObjectPath, String, String) = signal.body()?;
                if path == *job {
                    break result;
                }
            }
        };
        if result == "done" {
            return Ok(());
        }
        let path = self.unit_path(unit)?;
        let outcome: String = self.property(&path, SERVICE_INTERFACE, "Result")?;
        Err(Failure::Job { result, unit: outcome })
    }

    fn exit_status(&mut self, unit: &str) -> Result<i32, Failure> {
        let path = self.unit_path(unit)?;
        self.property(&path, SERVICE_INTERFACE, "ExecMainStatus")
    }

    fn unit_path(&mut self, unit: &str) -> Result<OwnedObjectPath, Failure> {
        self.manager::<_, (OwnedObjectPath,)>("LoadUnit", &(unit,)).map(|(path,)| path)
    }

    fn unit(&mut self, name: String, path: &str) -> Result<Unit, Failure> {
        let microseconds: u64 = self.property(path, UNIT_INTERFACE, "ActiveEnterTimestamp")?;
        let commands: Vec<ExecCommand> = self.property(path, SERVICE_INTERFACE, "ExecStart")?;
        let environment: Vec<String> = self.property(path, SERVICE_INTERFACE, "Environment")?;
        let environment: HashMap<&str, &str> =
            environment.iter().filter_map(|entry| entry.split_once('=')).collect();
        let command = commands.into_iter().next().map(|(_, arguments, ..)| arguments);
        Ok(Unit {
            name,
            since: SystemTime::UNIX_EPOCH + Duration::from_micros(microseconds),
            command: command
                .unwrap_or_default()
                .iter()
                .map(|argument| expand(argument, &environment))
                .collect(),
        })
    }

    fn property<T>(&mut self, path: &str, interface: &str, name: &str) -> Result<T, Failure>
    where
        T: TryFrom<OwnedValue>,
    {
        self.connection.set_deadline(Instant::now() + ANSWER);
        let (value,): (OwnedValue,) =
            self.connection.call(path, PROPERTIES_INTERFACE, "Get", &(interface, name))?;
        T::try_from(value)
            .map_err(|_| Failure::Protocol(format!("its property {name} is of another type")))
    }

    fn manager<B, R>(&mut self, member: &str, body: &B) -> Result<R, Failure>
    where
        B: serde::Serialize + zvariant::DynamicType,
        R: serde::de::DeserializeOwned + zvariant::Type,
    {
        self.connection.set_deadline(Instant::now() + ANSWER);
        self.connection.call(MANAGER, MANAGER_INTERFACE, member, body)
    }
}

/// A name for a unit that is run once: systemd keeps one for a moment after it
/// has ended.
pub(crate) fn unit_name(purpose: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("zeropod-installer-{purpose}-{}.service", now.as_nanos())
}

/// Replaces `${NAME}` as systemd does when it runs the command.
fn expand(argument: &str, environment: &HashMap<&str, &str>) -> String {
    let mut text = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once("${") {
        text.push_str(before);
        if let Some((name, after)) = after.split_once('}') {
            text.push_str(environment.get(name).copied().unwrap_or_default());
            rest = after;
        } else {
            text.push_str("${");
            rest = after;
        }
    }
    text.push_str(rest);
    text
}

fn failed(action: &'static str, what: &str) -> impl FnOnce(Failure) -> Error {
    let what = PathBuf::from(what);
    move |source| Error::Systemd { action, what, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_systemd_does() {
        let environment = HashMap::from([("CONFIG", "/etc/c.toml"), ("EMPTY", "")]);
        for (argument, expected) in [
            ("${CONFIG}", "/etc/c.toml"),
            ("--config=${CONFIG}${EMPTY}x", "--config=/etc/c.tomlx"),
            ("${NONE}", ""),
            ("${open", "${open"),
            ("$CONFIG", "$CONFIG"),
        ] {
            assert_eq!(expand(argument, &environment), expected);
        }
    }
}
