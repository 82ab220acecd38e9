//! How the client is doing: the state of every connection, and what is wrong
//! by name.

use std::collections::BTreeMap;

use zeropod_shim_api::id::ShimId;

/// The state of the client, by [`crate::ShimEvents::health`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the socket directory is not being watched; `None` when it is.
    pub directory: Option<String>,
    /// Every shim whose socket exists.
    pub shims: BTreeMap<ShimId, ShimHealth>,
}

/// The state of the connection to one shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimHealth {
    /// Being dialled for the first time.
    Connecting,
    /// Subscribed, and its questions are answered.
    Connected,
    /// Subscribed, but a question was not answered, for the reason given: what
    /// is known of its containers rests on events alone.
    Unresponsive(String),
    /// Cannot be dialled or subscribed to, for the reason given. It is tried
    /// again.
    Disconnected(String),
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Its stable name.
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
        let shims = self.shims.iter().filter_map(|(shim, health)| {
            let (name, error) = match health {
                ShimHealth::Connecting | ShimHealth::Connected => return None,
                ShimHealth::Unresponsive(error) => ("shim-unresponsive", error),
                ShimHealth::Disconnected(error) => ("shim-disconnected", error),
            };
            Some(Degraded { name, detail: format!("shim {shim}: {error}") })
        });
        directory.chain(shims).collect()
    }
}
