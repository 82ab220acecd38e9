//! D-Bus as far as systemd's private socket needs it: one peer, no bus, no
//! file descriptors. The D-Bus specification, "Message Protocol".

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use zvariant::{DynamicType, Endian, Type, Value, serialized};

use super::Failure;
use crate::files::hex;

/// A connection on which every read and write has to be done by a deadline:
/// PID 1 can be frozen, and then it would never answer (F-C7).
pub(super) struct Connection {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
    /// Signals that came while an answer was awaited.
    signals: VecDeque<Message>,
}

/// A message of the peer.
pub(super) struct Message {
    kind: u8,
    reply_to: u32,
    pub(super) member: String,
    error: String,
    signature: String,
    body: Vec<u8>,
    endian: Endian,
}

const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Codes of header fields.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// Longest message accepted; the specification allows 128 MiB, systemd's are
/// a few KiB.
const MAX_MESSAGE: usize = 16 << 20;

/// Signals kept while nobody reads them. More are dropped, oldest first: the
/// state of a unit can always be asked for.
const MAX_SIGNALS: usize = 1024;

impl Connection {
    pub(super) fn open(socket: &Path, deadline: Instant) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).map_err(Failure::Io)?;
        let mut connection = Self { stream, serial: 0, deadline, signals: VecDeque::new() };
        connection.authenticate()?;
        Ok(connection)
    }

    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// In one write, and the answers awaited before anything follows: systemd
    /// does not look again at what it has read together with `BEGIN`.
    fn authenticate(&mut self) -> Result<(), Failure> {
        let uid = nix::unistd::geteuid().to_string();
        let hex = hex(uid.as_bytes());
        self.write(format!("\0AUTH EXTERNAL {hex}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").as_bytes())?;
        for expected in ["OK ", "AGREE_UNIX_FD"] {
            let line = self.line()?;
            if !line.starts_with(expected) {
                return Err(Failure::Protocol(format!("it does not accept us: {line:?}")));
            }
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 1024 {
                return Err(Failure::Protocol("its answer has no end".into()));
            }
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Calls a method and returns what it answers.
    pub(super) fn call<B, R>(
        &mut self,
        path: &str,
        interface: &str,
        member: &str,
        body: &B,
    ) -> Result<R, Failure>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.serial = self.serial.wrapping_add(1).max(1);
        let message = encode(self.serial, path, interface, member, body)?;
        self.write(&message)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                RETURN if message.reply_to == self.serial => return message.body(),
                ERROR if message.reply_to == self.serial => {
                    let text = message.body().unwrap_or_default();
                    return Err(Failure::Answer { name: message.error, text });
                }
                SIGNAL => {
                    if self.signals.len() == MAX_SIGNALS {
                        self.signals.pop_front();
                    }
                    self.signals.push_back(message);
                }
                _ => {}
            }
        }
    }

    /// Waits for the next signal.
    pub(super) fn signal(&mut self) -> Result<Message, Failure> {
        if let Some(message) = self.signals.pop_front() {
            return Ok(message);
        }
        loop {
            let message = self.receive()?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self) -> Result<Message, Failure> {
        let mut start = [0; 16];
        self.read(&mut start)?;
        let endian = match start[0] {
            b'l' => Endian::Little,
            b'B' => Endian::Big,
            _ => return Err(Failure::Protocol("its message has no byte order".into())),
        };
        let number = |at: usize| {
            let bytes = [start[at], start[at + 1], start[at + 2], start[at + 3]];
            let number = match endian {
                Endian::Little => u32::from_le_bytes(bytes),
                Endian::Big => u32::from_be_bytes(bytes),
            };
            usize::try_from(number).unwrap_or(usize::MAX)
        };
        let (body_length, fields_length) = (number(4), number(12));
        if body_length > MAX_MESSAGE || fields_length > MAX_MESSAGE {
            return Err(Failure::Protocol("its message is too long".into()));
        }
        let header_length = (16 + fields_length).next_multiple_of(8);
        let mut header = start.to_vec();
        header.resize(header_length, 0);
        self.read(&mut header[16..])?;
        let mut body = vec![0; body_length];
        self.read(&mut body)?;
        decode(endian, &header, body)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        let mut at = 0;
        while at < buffer.len() {
            self.stream.set_read_timeout(Some(self.remaining()?)).map_err(Failure::Io)?;
            match self.stream.read(&mut buffer[at..]) {
                Ok(0) => return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => at += read,
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(Failure::Io(error)),
            }
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.remaining()?)).map_err(Failure::Io)?;
            match self.stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(Failure::Io(error)),
            }
        }
        Ok(())
    }

    fn remaining(&self) -> Result<Duration, Failure> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(Failure::Deadline) } else { Ok(remaining) }
    }
}

/// Errors after which the deadline decides whether to try again.
fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

impl Message {
    /// The body, if it is of the type asked for.
    pub(super) fn body<T: DeserializeOwned + Type>(&self) -> Result<T, Failure> {
        let context = serialized::Context::new_dbus(self.endian, 0);
        let expected = T::SIGNATURE.to_string_no_parens();
        if self.signature != expected {
            return Err(Failure::Protocol(format!(
                "its message {} is of type {:?} and not {expected:?}",
                self.member, self.signature
            )));
        }
        let data = serialized::Data::new(self.body.as_slice(), context);
        let (value, _) = data.deserialize::<T>().map_err(malformed)?;
        Ok(value)
    }
}

fn encode<B: Serialize + DynamicType>(
    serial: u32,
    path: &str,
    interface: &str,
    member: &str,
    body: &B,
) -> Result<Vec<u8>, Failure> {
    let context = serialized::Context::new_dbus(Endian::Little, 0);
    let signature = body.signature().to_string_no_parens();
    let body = zvariant::to_bytes(context, body).map_err(malformed)?;
    let has_body = !signature.is_empty();
    let body = if has_body { body.bytes() } else { &[] };
    // By hand: zvariant puts the signature of a tuple in parentheses, which a
    // header field must not have.
    let mut fields = Vec::new();
    for (code, kind, text) in [
        (field::PATH, b'o', path),
        (field::INTERFACE, b's', interface),
        (field::MEMBER, b's', member),
        (field::DESTINATION, b's', "org.freedesktop.systemd1"),
        (field::SIGNATURE, b'g', signature.as_str()),
    ] {
        if code == field::SIGNATURE && !has_body {
            continue;
        }
        fields.resize(fields.len().next_multiple_of(8), 0);
        fields.extend([code, 1, kind, 0]);
        if kind == b'g' {
            fields.push(length_of(text.as_bytes())?);
        } else {
            fields.extend(length_of::<u32>(text.as_bytes())?.to_le_bytes());
        }
        fields.extend_from_slice(text.as_bytes());
        fields.push(0);
    }
    let mut message = vec![b'l', CALL, 0, 1];
    message.extend(length_of::<u32>(body)?.to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend(length_of::<u32>(&fields)?.to_le_bytes());
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend_from_slice(body);
    Ok(message)
}

fn length_of<N: TryFrom<usize>>(bytes: &[u8]) -> Result<N, Failure> {
    N::try_from(bytes.len()).map_err(|_| Failure::Protocol("our message is too long".into()))
}

fn decode(endian: Endian, header: &[u8], body: Vec<u8>) -> Result<Message, Failure> {
    type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Value<'a>)>);
    let context = serialized::Context::new_dbus(endian, 0);
    let data = serialized::Data::new(header, context);
    let ((_, kind, _, _, _, _, fields), _) = data.deserialize::<Header<'_>>().map_err(malformed)?;
    let mut message = Message {
        kind,
        reply_to: 0,
        member: String::new(),
        error: String::new(),
        signature: String::new(),
        body,
        endian,
    };
    for (code, value) in fields {
        match (code, value) {
            (field::MEMBER, Value::Str(text)) => message.member = text.to_string(),
            (field::ERROR_NAME, Value::Str(text)) => message.error = text.to_string(),
            (field::REPLY_SERIAL, Value::U32(serial)) => message.reply_to = serial,
            (field::SIGNATURE, Value::Signature(signature)) => {
                message.signature = signature.to_string_no_parens();
            }
            _ => {}
        }
    }
    Ok(message)
}

fn malformed(error: impl std::fmt::Display) -> Failure {
    Failure::Protocol(format!("its message cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What a call returns when the peer answers its greeting and then this.
    fn call_answered_by(answer: &[u8]) -> Result<(String,), Failure> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("private");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = answer.to_vec();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut greeting = [0; 256];
            assert!(stream.read(&mut greeting).unwrap() > 0);
            stream.write_all(b"OK 0123456789abcdef\r\nAGREE_UNIX_FD\r\n").unwrap();
            assert!(stream.read(&mut greeting).unwrap() > 0);
            stream.write_all(&answer).unwrap();
            // Waits for the other side to have enough.
            let _ = stream.read(&mut greeting);
        });
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut connection = Connection::open(&socket, deadline).unwrap();
        let result = connection.call("/a", "b.c", "D", &());
        drop(connection);
        peer.join().unwrap();
        result
    }

    /// A return of the call with serial 1, with a string in its body.
    fn answer(text: &[u8]) -> Vec<u8> {
        let length = u8::try_from(text.len()).unwrap();
        let mut message = vec![b'l', RETURN, 0, 1, length + 5, 0, 0, 0, 1, 0, 0, 0, 15, 0, 0, 0];
        message.extend([field::REPLY_SERIAL, 1, b'u', 0, 1, 0, 0, 0]);
        message.extend([field::SIGNATURE, 1, b'g', 0, 1, b's', 0, 0]);
        message.extend([length, 0, 0, 0]);
        message.extend_from_slice(text);
        message.push(0);
        message
    }

    #[test]
    fn an_answer_is_read() {
        assert_eq!(call_answered_by(&answer(b"yes")).unwrap().0, "yes");
    }

    #[test]
    fn silence_and_nonsense_are_errors_in_time() {
        // F-C7.
        assert!(matches!(call_answered_by(b""), Err(Failure::Deadline)));
        assert!(matches!(call_answered_by(&answer(b"yes")[..20]), Err(Failure::Deadline)));
        let huge = [&[b'l', RETURN, 0, 1][..], &[0xff; 12]].concat();
        for nonsense in [b"HTTP/1.1 400 Bad".as_slice(), &huge, &answer(b"\xff\xfe")] {
            assert!(
                matches!(call_answered_by(nonsense), Err(Failure::Protocol(_))),
                "{nonsense:?}"
            );
        }
        // Of another type than expected, and an answer to somebody else.
        let mut other_type = answer(b"yes");
        other_type[29] = b'o';
        assert!(matches!(call_answered_by(&other_type), Err(Failure::Protocol(_))));
        let mut other_call = answer(b"yes");
        other_call[20] = 9;
        assert!(matches!(call_answered_by(&other_call), Err(Failure::Deadline)));
    }
}
