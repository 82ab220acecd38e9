use std::time::Duration;

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
    /// As a healthy shim, after this time.
    Delayed(Duration),
    /// By these bytes as the message of an otherwise right frame. A
    /// subscription stays open after them.
    Message(Vec<u8>),
    /// By these bytes; [`frame`](super::frame) makes some that look right.
    Raw(Vec<u8>),
    /// By closing the connection.
    Close,
}
