//! How the client is doing: the state of every connection, and what is wrong
//! by name.

use std::{collections::BTreeMap, time::SystemTime};

use zeropod_shim_api::id::ShimId;

/// The state of the client, by [`crate::ShimEvents::health`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the socket directory is not being watched; `None` when it is.
    pub directory: Option<String>,
    /// Every shim whose socket exists.
    pub shims: BTreeMap<ShimId, ShimHealth>,
}

/// The state of one shim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimHealth {
    /// The connection to it.
    pub connection: Connection,
    /// When events were found to be lost. Counts of checkpoints and restores
    /// may be too low since; the state of the containers has been corrected.
    /// Cleared by the next resync that finds nothing to correct.
    pub events_lost: Option<SystemTime>,
}

/// The connection to one shim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Connection {
    /// Being dialled for the first time.
    #[default]
    Connecting,
    /// Subscribed, and its questions are answered.
    Connected,
    /// Subscribed, but a question was not answered, for the reason given: what
    /// is known of its containers rests on events alone.
    Unresponsive(String),
    /// Cannot be dialled or subscribed to, for the reason given. It is tried
    /// again.
    Disconnected(String),
    /// Nobody listens on its socket any more. It is tried again, in case its
    /// place is taken.
    Dead,
}

impl Connection {
    /// Every name of a state, as in the metric.
    pub(crate) const NAMES: [&str; 5] =
        ["connecting", "connected", "unresponsive", "disconnected", "dead"];

    /// Name of the state, as in the metric.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Unresponsive(_) => "unresponsive",
            Self::Disconnected(_) => "disconnected",
            Self::Dead => "dead",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Its stable name: `shim-directory`, `shim-unresponsive`,
    /// `shim-disconnected`, `shim-dead` or `shim-events-lost`.
    pub name: &'static str,
    /// What and why, for people.
    pub detail: String,
}

impl Health {
    /// Everything that is wrong now.
    pub fn degraded(&self) -> Vec<Degraded> {
        let directory = self
            .directory
            .iter()
            .map(|error| Degraded { name: "shim-directory", detail: error.clone() });
        let shims = self.shims.iter().flat_map(|(shim, health)| {
            let connection = match &health.connection {
                Connection::Connecting | Connection::Connected => None,
                Connection::Unresponsive(error) => Some(("shim-unresponsive", error.as_str())),
                Connection::Disconnected(error) => Some(("shim-disconnected", error.as_str())),
                Connection::Dead => Some(("shim-dead", "nobody listens on its socket")),
            };
            let lost = health.events_lost.map(|_| ("shim-events-lost", "some events were lost"));
            connection.into_iter().chain(lost).map(move |(name, error)| Degraded {
                name,
                detail: format!("shim {shim}: {error}"),
            })
        });
        directory.chain(shims).collect()
    }

    /// Number of shims in each state of [`Connection::NAMES`].
    pub(crate) fn connections(&self) -> [usize; Connection::NAMES.len()] {
        Connection::NAMES
            .map(|name| self.shims.values().filter(|shim| shim.connection.name() == name).count())
    }
}
