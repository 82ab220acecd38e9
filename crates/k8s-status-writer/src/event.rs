//! The Kubernetes Events about scalings, field by field as zeropod creates
//! them: dashboards and scripts match their reasons and messages.
//!
//! Two things differ from the Go manager. Failures are Warnings, with the
//! time at which they happened (S14). And the name is not left to the server
//! but made from what the Event is about, so that a create whose answer was
//! lost can be repeated: the second one finds the first (S7).

use std::{
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};
use zeropod_shim_api::{
    id::{ContainerId, PodRef},
    names,
    status::{Phase, StatusEvent},
};

use crate::{go_duration::GoDuration, pod::Pod};

/// Longest message that the API takes.
const MAX_MESSAGE: usize = 1024;
/// Longest `reportingInstance` that the API takes.
const MAX_INSTANCE: usize = 128;

/// Who reports.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    pub(crate) instance: String,
    pub(crate) node: String,
}

impl Reporter {
    /// The node's name stands in for an instance that isn't known.
    pub(crate) fn new(instance: &str, node: &str) -> Self {
        let instance = if instance.is_empty() { node } else { instance };
        Self { instance: clip(instance, MAX_INSTANCE).to_owned(), node: node.to_owned() }
    }
}

/// Something that is to be told in an Event about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// The run of the container that it is about; `None` for the pod as a
    /// whole.
    pub(crate) id: Option<ContainerId>,
    pub(crate) container: Box<str>,
    pub(crate) warning: bool,
    /// Reason and action.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) first: SystemTime,
    pub(crate) last: SystemTime,
    /// How many changes this stands for.
    pub(crate) count: u32,
}

impl Report {
    /// What there is to tell of a status event that arrived at `now`. `None`
    /// for a start and for a stop, which the kubelet tells of itself.
    pub(crate) fn of(event: &StatusEvent, log_excerpt: bool, now: SystemTime) -> Option<Self> {
        let name = event.container.name();
        let duration = event.duration.filter(|duration| *duration > Duration::ZERO);
        let (reason, mut message) = match event.phase {
            Phase::Running => {
                let took = GoDuration(duration?);
                ("Running", format!("Restored container {name} in {took}"))
            }
            Phase::ScaledDown => {
                let mut message = format!("Scaled down container {name}");
                if let Some(took) = event.duration {
                    // Writing to a string never fails.
                    let _ = write!(message, " in {}", GoDuration(took));
                }
                ("Scaled down", message)
            }
            Phase::CheckpointFailed => {
                ("Checkpoint failed", format!("Checkpoint failed for container {name}"))
            }
            Phase::RestoreFailed => {
                ("Restore failed", format!("Restore failed for container {name}"))
            }
            Phase::Stopping => return None,
        };
        let warning = matches!(event.phase, Phase::CheckpointFailed | Phase::RestoreFailed);
        if warning && log_excerpt && !event.log.is_empty() {
            // The end of the log says why; cut at the front.
            let room = MAX_MESSAGE - message.len() - 2;
            let log = event.log.join("\n");
            let start = log.len().saturating_sub(room);
            let start = (start..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            let _ = write!(message, ":\n{}", &log[start..]);
        }
        // S14: a failure that carries a duration carries the time of the last
        // success too, not its own.
        let stale = warning && event.duration.is_some();
        let time = event.time.filter(|_| !stale).unwrap_or(now);
        Some(Self {
            id: Some(event.id.clone()),
            container: name.into(),
            warning,
            reason,
            message: clip(&message, MAX_MESSAGE).to_owned(),
            first: time,
            last: time,
            count: 1,
        })
    }

    /// Adds a later report of the same container, which then stands for both.
    pub(crate) fn absorb(&mut self, later: Self) {
        let Self { id, container, warning, reason, message, first: _, last, count } = later;
        *self = Self {
            id,
            container,
            warning: warning || self.warning,
            reason,
            message,
            first: self.first,
            last,
            count: self.count.saturating_add(count),
        };
    }

    /// The object to create. Its name is the same each time.
    pub(crate) fn object(&self, pod_ref: &PodRef, pod: &Pod, reporter: &Reporter) -> Event {
        let micro = |time| timestamp(time).map(MicroTime);
        let second = |time| timestamp(time).map(Time);
        let mut message = self.message.clone();
        if self.count > 1 {
            let more = format!(" (the last of {} status changes)", self.count);
            message = format!("{}{more}", clip(&message, MAX_MESSAGE - more.len()));
        }
        Event {
            metadata: ObjectMeta {
                generate_name: Some(names::EVENT_NAME_PREFIX.to_owned()),
                name: Some(format!("{}{:016x}", names::EVENT_NAME_PREFIX, self.digest(pod))),
                namespace: Some(pod_ref.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(self.reason.to_owned()),
            action: Some(self.reason.to_owned()),
            message: Some(message),
            event_time: micro(self.last),
            first_timestamp: second(self.first),
            last_timestamp: second(self.last),
            count: (self.count > 1).then(|| i32::try_from(self.count).unwrap_or(i32::MAX)),
            reporting_component: Some(names::EVENT_REPORTER.to_owned()),
            reporting_instance: Some(reporter.instance.clone()),
            source: Some(EventSource {
                component: Some(names::EVENT_REPORTER.to_owned()),
                host: Some(reporter.node.clone()),
            }),
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod_ref.name().to_owned()),
                namespace: Some(pod_ref.namespace().to_owned()),
                uid: Some(pod.uid.to_string()),
                resource_version: Some(pod.resource_version.to_string()),
                field_path: self.field_path(pod),
            },
            ..Event::default()
        }
    }

    fn field_path(&self, pod: &Pod) -> Option<String> {
        if self.container.is_empty() {
            return None;
        }
        let kind = pod.container(&self.container).map(|container| container.kind);
        let field = kind.unwrap_or_default().field();
        Some(format!("spec.{field}{{{}}}", self.container))
    }

    fn digest(&self, pod: &Pod) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&pod.uid, self.id.as_ref().map(ContainerId::as_str), &self.container).hash(&mut hasher);
        (self.reason, &self.message, self.first, self.last, self.count).hash(&mut hasher);
        hasher.finish()
    }
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

/// `text`, cut to at most `bytes` bytes between two characters.
fn clip(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use zeropod_shim_api::id::ContainerRef;

    use super::*;

    const NOW: Duration = Duration::from_secs(2_000_000_000);

    fn event(phase: Phase, duration: Option<Duration>) -> StatusEvent {
        StatusEvent {
            id: ContainerId::new("c1").unwrap(),
            container: ContainerRef::new(pod_ref(), "app").unwrap(),
            phase,
            time: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789)),
            duration,
            log: vec!["first".into(), "last".into()],
        }
    }

    fn pod_ref() -> PodRef {
        PodRef::new("default", "web").unwrap()
    }

    fn report(phase: Phase, duration: Option<Duration>) -> Option<Report> {
        Report::of(&event(phase, duration), false, SystemTime::UNIX_EPOCH + NOW)
    }

    #[test]
    fn reasons_and_messages() {
        let ms = Some(Duration::from_micros(123_456));
        for (phase, duration, expected) in [
            (Phase::Running, ms, Some(("Running", "Restored container app in 123.456ms", false))),
            (Phase::Running, None, None),
            (Phase::Running, Some(Duration::ZERO), None),
            (Phase::ScaledDown, None, Some(("Scaled down", "Scaled down container app", false))),
            (
                Phase::ScaledDown,
                Some(Duration::ZERO),
                Some(("Scaled down", "Scaled down container app in 0s", false)),
            ),
            (
                Phase::CheckpointFailed,
                None,
                Some(("Checkpoint failed", "Checkpoint failed for container app", true)),
            ),
            (
                Phase::RestoreFailed,
                ms,
                Some(("Restore failed", "Restore failed for container app", true)),
            ),
            (Phase::Stopping, ms, None),
        ] {
            let report = report(phase, duration);
            let got = report.as_ref().map(|r| (r.reason, &*r.message, r.warning));
            assert_eq!(got, expected, "{phase} {duration:?}");
        }
    }

    #[test]
    fn the_object_as_contracted() {
        let pod = Pod { uid: "u1".into(), resource_version: "42".into(), ..Pod::default() };
        let reporter = Reporter::new("", "node-a");
        let object = report(Phase::ScaledDown, Some(Duration::from_millis(1500))).unwrap().object(
            &pod_ref(),
            &pod,
            &reporter,
        );
        let name = object.metadata.name.clone().unwrap();
        assert!(name.starts_with("zeropod-status-event-"));
        assert_eq!(
            serde_json::to_value(object).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {
                    "generateName": "zeropod-status-event-",
                    "name": name,
                    "namespace": "default",
                },
                "type": "Normal",
                "reason": "Scaled down",
                "action": "Scaled down",
                "message": "Scaled down container app in 1.5s",
                "eventTime": "2023-11-14T22:13:20.123456Z",
                "firstTimestamp": "2023-11-14T22:13:20Z",
                "lastTimestamp": "2023-11-14T22:13:20Z",
                "reportingComponent": "zeropod.ctrox.dev/manager",
                "reportingInstance": "node-a",
                "source": { "component": "zeropod.ctrox.dev/manager", "host": "node-a" },
                "involvedObject": {
                    "apiVersion": "v1", "kind": "Pod", "name": "web", "namespace": "default",
                    "uid": "u1", "resourceVersion": "42", "fieldPath": "spec.containers{app}",
                },
            })
        );
    }

    #[test]
    fn s14_failures_are_warnings_with_their_own_time() {
        let own = report(Phase::CheckpointFailed, None).unwrap();
        assert!(own.warning);
        assert_ne!(own.last, SystemTime::UNIX_EPOCH + NOW);
        let stale = report(Phase::CheckpointFailed, Some(Duration::from_secs(1))).unwrap();
        assert_eq!(stale.last, SystemTime::UNIX_EPOCH + NOW);
    }

    #[test]
    fn s7_the_same_event_has_the_same_name() {
        let pod = Pod { uid: "u1".into(), ..Pod::default() };
        let reporter = Reporter::new("manager-x", "node-a");
        let name = |report: &Report, pod: &Pod| {
            report.object(&pod_ref(), pod, &reporter).metadata.name.unwrap()
        };
        let one = report(Phase::ScaledDown, None).unwrap();
        let newer = Pod { resource_version: "43".into(), ..pod.clone() };
        assert_eq!(name(&one, &pod), name(&one.clone(), &newer));
        let other = Report { last: one.last + Duration::from_nanos(1), ..one.clone() };
        assert_ne!(name(&one, &pod), name(&other, &pod));
        assert_ne!(name(&one, &pod), name(&one, &Pod { uid: "u2".into(), ..pod.clone() }));
    }

    #[test]
    fn f_j1_lengths_are_kept() {
        let long = Reporter::new(&"ä".repeat(100), "n");
        assert_eq!(long.instance.len(), 128);
        let mut failure = event(Phase::RestoreFailed, None);
        failure.log = vec!["é".repeat(400); 21];
        let now = SystemTime::UNIX_EPOCH + NOW;
        let quiet = Report::of(&failure, false, now).unwrap();
        assert_eq!(quiet.message, "Restore failed for container app");
        let mut told = Report::of(&failure, true, now).unwrap();
        assert!(told.message.len() <= 1024 && told.message.ends_with('é'));
        told.count = u32::MAX;
        let object = told.object(&pod_ref(), &Pod::default(), &long);
        assert!(object.message.unwrap().len() <= 1024);
        assert_eq!(object.count, Some(i32::MAX));
    }

    #[test]
    fn f_j3_a_summary_carries_the_count() {
        let mut sum = report(Phase::ScaledDown, None).unwrap();
        sum.absorb(report(Phase::Running, Some(Duration::from_secs(1))).unwrap());
        sum.absorb(report(Phase::ScaledDown, Some(Duration::from_secs(2))).unwrap());
        let object = sum.object(&pod_ref(), &Pod::default(), &Reporter::new("", "n"));
        assert_eq!(
            object.message.unwrap(),
            "Scaled down container app in 2s (the last of 3 status changes)"
        );
        assert_eq!(object.count, Some(3));
    }
}
