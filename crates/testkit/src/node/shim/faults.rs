/// How a shim misbehaves. By default it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// To `Metrics`; other than normal answers clear nothing.
    pub metrics: Answer,
    /// To `GetStatus`.
    pub get_status: Answer,
    /// To `SubscribeStatus`; other than normal subscriptions take no events.
    pub subscribe: Answer,
    /// Accepts connections but reads nothing from them.
    pub stop_reading: bool,
}

/// How one method answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Answer {
    /// As a healthy shim.
    #[default]
    Normal,
    /// Not at all; the connection stays open.
    Never,
    /// By an error.
    Error(ttrpc::Code, String),
    /// By these bytes; [`frame`](super::frame) makes some that look right.
    Raw(Vec<u8>),
    /// By closing the connection.
    Close,
}
