//! What others have found to be wrong with pods, told once each.

use std::{
    collections::HashMap,
    time::{Instant, SystemTime},
};

use zeropod_shim_api::id::PodRef;

use super::Engine;
use crate::event::Report;

/// Something that is wrong with a pod, for as long as it lasts, by
/// [`Handle::set_troubles`](crate::Handle::set_troubles).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// UID of the pod. The mirror of a static pod has another one than the
    /// kubelet knows it by, so that of those nothing is told.
    pub pod_uid: Box<str>,
    /// Reason and action of the Event, in a few words.
    pub reason: &'static str,
    /// What is wrong and what follows from it, for people.
    pub message: String,
    /// When it began: another time is another trouble.
    pub since: SystemTime,
}

/// By the uid of the pod.
pub(super) type Troubles = HashMap<Box<str>, Trouble>;

impl Engine {
    /// Takes everything that is wrong with pods now. A pod that is not known
    /// yet hears of it once it is.
    pub(crate) fn on_troubles(&mut self, troubles: Vec<Trouble>, now: Instant) {
        self.troubles =
            troubles.into_iter().map(|trouble| (trouble.pod_uid.clone(), trouble)).collect();
        let pods: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| self.troubles.contains_key(&pod.uid))
            .map(|(pod_ref, _)| pod_ref.clone())
            .collect();
        for pod in pods {
            self.tell_trouble(&pod, now);
        }
    }

    pub(super) fn tell_trouble(&mut self, pod_ref: &PodRef, now: Instant) {
        let Some(work) = self.works.get_mut(pod_ref) else { return };
        let Some(trouble) = self.troubles.get(&work.uid) else { return };
        let Trouble { pod_uid: _, reason, message, since } = trouble;
        if !self.config.features.events || work.troubled == Some((*reason, *since)) {
            return;
        }
        work.troubled = Some((*reason, *since));
        let report = Report {
            id: None,
            container: Box::default(),
            warning: true,
            reason,
            message: message.clone(),
            first: *since,
            last: *since,
            count: 1,
        };
        self.report(pod_ref, report, now);
    }
}
