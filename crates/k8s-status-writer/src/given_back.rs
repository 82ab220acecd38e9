//! What pods request less for their containers while these are scaled down:
//! for people, and as two gauges.

use std::collections::BTreeMap;

use metrics::gauge;
use tokio::sync::watch;
use zeropod_shim_api::id::{ContainerRef, PodRef};

use crate::{
    pod::{Container, Pod, Scaled},
    state,
};

/// Requests that a container gives back.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GivenBack {
    /// CPU, in cores.
    pub cpu_cores: f64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// What all containers give back; those that give back nothing are not in it.
#[derive(Debug)]
pub(crate) struct Ledger(watch::Sender<BTreeMap<ContainerRef, GivenBack>>);

impl Ledger {
    pub(crate) fn new() -> Self {
        let ledger = Self(watch::Sender::default());
        ledger.count();
        ledger
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<ContainerRef, GivenBack>> {
        self.0.subscribe()
    }

    /// Notes what a pod looks like now; `None` once it is gone.
    pub(crate) fn note(&self, pod_ref: &PodRef, pod: Option<&Pod>) {
        let containers = pod.into_iter().flat_map(|pod| &pod.containers);
        let now: BTreeMap<ContainerRef, GivenBack> = containers
            .filter_map(|container| {
                let name = ContainerRef::new(pod_ref.clone(), &container.name).ok()?;
                Some((name, given_back(container)?))
            })
            .collect();
        let changed = self.0.send_if_modified(|all| {
            let before = all.iter().filter(|(container, _)| container.pod == *pod_ref);
            if before.eq(now.iter()) {
                return false;
            }
            all.retain(|container, _| container.pod != *pod_ref);
            all.extend(now);
            true
        });
        if changed {
            self.count();
        }
    }

    fn count(&self) {
        let all = self.0.borrow();
        gauge!(state::GIVEN_BACK_CPU).set(all.values().map(|given| given.cpu_cores).sum::<f64>());
        #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
        let memory = all.values().map(|given| given.memory_bytes as f64).sum::<f64>();
        gauge!(state::GIVEN_BACK_MEMORY).set(memory);
    }
}

/// The difference to the original requests, of those that are lowered.
fn given_back(container: &Container) -> Option<GivenBack> {
    let nanos = |resource: Scaled| {
        let request = container.resources.get(resource);
        let now = request.now.as_ref().filter(|now| resource.is_sentinel(now))?;
        let less = request.original.as_ref()?.nanos() - now.nanos();
        u64::try_from(less / NANOS).ok().zip(u32::try_from(less % NANOS).ok())
    };
    let (cores, nanocores) = nanos(Scaled::Cpu).unwrap_or_default();
    let (memory_bytes, _) = nanos(Scaled::Memory).unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "no machine has that many cores")]
    let cpu_cores = cores as f64 + f64::from(nanocores) / 1e9;
    let given = GivenBack { cpu_cores, memory_bytes };
    (given != GivenBack::default()).then_some(given)
}

const NANOS: i128 = 1_000_000_000;
