//! The handshake as the server sees it: one option in, replies out, and whether to go on. No I/O.

use std::sync::Arc;

use bytes::BufMut;

use super::Export;
use super::proto::{self, Fields, handshake_flags, info, option, option_reply, transmission_flags};

/// What the handshake agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Index of the export.
    pub export: usize,
    /// Reads are answered by structured replies, errors with a text.
    pub structured: bool,
    /// Block status may be asked for.
    pub allocation: bool,
}

/// What to do after an option was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Read the next option.
    Continue,
    /// Read requests.
    Transmit(Agreed),
    /// Send what was answered, encrypt, and begin anew: what was agreed on before counts no more.
    StartTls,
    /// Send what was answered and close.
    Close,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Security {
    /// It is not, and need not be.
    Open,
    /// It has to be, and is not yet: nothing else is answered.
    TlsDue,
    /// It is.
    Tls,
}

/// The state of one handshake.
pub struct Handshake<'a> {
    exports: &'a [Arc<dyn Export>],
    security: Security,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen: it holds for that one only.
    allocation: Option<usize>,
    options: u32,
}

/// The greeting: magic u64 · option magic u64 · handshake flags u16.
#[must_use]
pub fn greeting() -> [u8; proto::GREETING_BYTES] {
    let mut bytes = [0; proto::GREETING_BYTES];
    let mut out = &mut bytes[..];
    out.put_u64(proto::GREETING_MAGIC);
    out.put_u64(proto::OPTION_MAGIC);
    out.put_u16((handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES) as u16);
    bytes
}

/// The transmission flags of an export.
#[must_use]
pub fn flags_of(export: &dyn Export, structured: bool) -> u16 {
    use transmission_flags as f;
    let mut flags = f::HAS_FLAGS | f::SEND_FLUSH;
    if export.read_only() {
        flags |= f::READ_ONLY;
    } else {
        flags |= f::SEND_FUA | f::SEND_TRIM | f::SEND_WRITE_ZEROES;
        if export.fast_zero() {
            flags |= f::SEND_FAST_ZERO;
        }
    }
    if export.multi_conn() {
        flags |= f::CAN_MULTI_CONN;
    }
    if structured {
        flags |= f::SEND_DF;
    }
    flags
}

impl<'a> Handshake<'a> {
    /// Starts after the client's flags were read; `None` if it wants something that was not offered.
    #[must_use]
    pub fn start(exports: &'a [Arc<dyn Export>], client_flags: u32, security: Security) -> Option<Self> {
        let known = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        if client_flags & !known != 0 {
            return None;
        }
        let no_zeroes = client_flags & handshake_flags::NO_ZEROES != 0;
        Some(Self { exports, security, no_zeroes, structured: false, allocation: None, options: 0 })
    }

    /// Answers one option. `data` has been bounded by [`proto::OPTION_BYTES_MAX`].
    pub fn answer(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        self.options += 1;
        if self.options > proto::OPTIONS_MAX {
            proto::encode_option_reply(out, option, option_reply::ERR_TOO_BIG, b"too many options");
            return Step::Close;
        }
        let due = self.security == Security::TlsDue;
        match option {
            option::STARTTLS => return self.start_tls(data, out),
            // This option has no reply that could say why.
            option::EXPORT_NAME if due => return Step::Close,
            _ if due && option != option::ABORT => {
                refuse(out, option, option_reply::ERR_TLS_REQD, "this server wants TLS: start it first");
            }
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                proto::encode_option_reply(out, option, option_reply::ACK, &[]);
                return Step::Close;
            }
            option::GO | option::INFO => return self.describe(option, data, out),
            option::LIST => self.list(data, out),
            option::STRUCTURED_REPLY => {
                if data.is_empty() {
                    self.structured = true;
                    proto::encode_option_reply(out, option, option_reply::ACK, &[]);
                } else {
                    refuse(out, option, option_reply::ERR_INVALID, "STRUCTURED_REPLY has no data");
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data, out),
            _ => refuse(out, option, option_reply::ERR_UNSUP, "this option is not known"),
        }
        Step::Continue
    }

    fn start_tls(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let option = option::STARTTLS;
        match self.security {
            Security::Open => refuse(out, option, option_reply::ERR_UNSUP, "TLS is not offered on this socket"),
            Security::Tls => refuse(out, option, option_reply::ERR_INVALID, "the connection is encrypted already"),
            Security::TlsDue if !data.is_empty() => {
                refuse(out, option, option_reply::ERR_INVALID, "STARTTLS has no data");
            }
            Security::TlsDue => {
                proto::encode_option_reply(out, option, option_reply::ACK, &[]);
                return Step::StartTls;
            }
        }
        Step::Continue
    }

    /// An empty name stands for the only export.
    fn find(&self, name: &str) -> Option<usize> {
        if name.is_empty() && self.exports.len() == 1 {
            return Some(0);
        }
        self.exports.iter().position(|export| export.name() == name)
    }

    fn agreed(&self, export: usize) -> Agreed {
        Agreed { export, structured: self.structured, allocation: self.structured && self.allocation == Some(export) }
    }

    /// This option has no reply that could carry an error: an unknown name ends the session.
    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let Some(index) = std::str::from_utf8(data).ok().and_then(|name| self.find(name)) else {
            return Step::Close;
        };
        let export = &*self.exports[index];
        out.put_u64(export.size_bytes());
        out.put_u16(flags_of(export, self.structured));
        if !self.no_zeroes {
            out.put_bytes(0, 124);
        }
        Step::Transmit(self.agreed(index))
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) {
        if !data.is_empty() {
            return refuse(out, option::LIST, option_reply::ERR_INVALID, "LIST has no data");
        }
        for export in self.exports {
            let mut name = Vec::new();
            proto::encode_string(&mut name, export.name());
            proto::encode_option_reply(out, option::LIST, option_reply::SERVER, &name);
        }
        proto::encode_option_reply(out, option::LIST, option_reply::ACK, &[]);
    }

    /// INFO and GO: name length u32 · name · count u16 · count kinds of information u16.
    fn describe(&self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        let mut fields = Fields(data);
        let mut read = || {
            let name = fields.string()?;
            let count = fields.u16()?;
            let kinds = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
            fields.0.is_empty().then_some((name, kinds))
        };
        let Some((name, kinds)) = read() else {
            refuse(out, option, option_reply::ERR_INVALID, "the option is malformed");
            return Step::Continue;
        };
        let Some(index) = self.find(name) else {
            refuse(out, option, option_reply::ERR_UNKNOWN, "there is no export of this name");
            return Step::Continue;
        };
        let export = &*self.exports[index];
        let mut send = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut data = Vec::new();
            write(&mut data);
            proto::encode_option_reply(out, option, option_reply::INFO, &data);
        };
        send(&|data| {
            data.put_u16(info::EXPORT);
            data.put_u64(export.size_bytes());
            data.put_u16(flags_of(export, self.structured));
        });
        send(&|data| {
            data.put_u16(info::BLOCK_SIZE);
            data.put_u32(proto::BLOCK_BYTES_MIN);
            data.put_u32(proto::BLOCK_BYTES_PREFERRED);
            data.put_u32(proto::PAYLOAD_BYTES_MAX);
        });
        if kinds.contains(&info::NAME) {
            send(&|data| {
                data.put_u16(info::NAME);
                data.put_slice(export.name().as_bytes());
            });
        }
        proto::encode_option_reply(out, option, option_reply::ACK, &[]);
        if option == option::GO { Step::Transmit(self.agreed(index)) } else { Step::Continue }
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT: name length u32 · name · count u32 · count queries of length u32 · text.
    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Whatever is wrong with this request, it takes back an earlier choice.
            self.allocation = None;
        }
        let mut fields = Fields(data);
        let mut read = || {
            let name = fields.string()?;
            let count = fields.u32()?;
            // The data is bounded, so a lying count ends at the data's end; nothing is allocated by it.
            let mut wanted = count == 0 && !set;
            for _ in 0..count {
                let query = fields.string()?;
                wanted |= query == proto::CONTEXT_ALLOCATION || (!set && query == "base:");
            }
            fields.0.is_empty().then_some((name, wanted))
        };
        let Some((name, wanted)) = read() else {
            return refuse(out, option, option_reply::ERR_INVALID, "the option is malformed");
        };
        if !self.structured {
            return refuse(out, option, option_reply::ERR_INVALID, "ask for structured replies first");
        }
        let Some(index) = self.find(name) else {
            return refuse(out, option, option_reply::ERR_UNKNOWN, "there is no export of this name");
        };
        if wanted {
            if set {
                self.allocation = Some(index);
            }
            let mut data = Vec::new();
            data.put_u32(if set { proto::CONTEXT_ALLOCATION_ID } else { 0 });
            data.put_slice(proto::CONTEXT_ALLOCATION.as_bytes());
            proto::encode_option_reply(out, option, option_reply::META_CONTEXT, &data);
        }
        proto::encode_option_reply(out, option, option_reply::ACK, &[]);
    }
}

fn refuse(out: &mut Vec<u8>, option: u32, reply: u32, text: &str) {
    proto::encode_option_reply(out, option, reply, text.as_bytes());
}
