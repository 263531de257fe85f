//! The numbers by which both sides name why a connection or a disk stream ended.

use crate::fault::Fault;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $word:literal;)*) => {
        /// Why a connection or a disk stream ended, as it stands in QUIC close codes and in refusals.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code {
            $( $(#[doc = $doc])+ $name, )*
            /// A number that this version does not know.
            Other(u32),
        }

        impl Code {
            /// Every known code.
            pub const ALL: &[Self] = &[$( Self::$name, )*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self {
                    $( Self::$name => $number, )*
                    Self::Other(number) => number,
                }
            }

            /// The code of a number.
            #[must_use]
            pub const fn from_number(number: u32) -> Self {
                match number {
                    $( $number => Self::$name, )*
                    number => Self::Other(number),
                }
            }

            /// The word used in logs and as a metric label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( Self::$name => $word, )*
                    Self::Other(_) => "other",
                }
            }
        }
    };
}

codes! {
    /// Ended as meant.
    Done = 0, "done";
    /// The gateway drains; come back or go to another.
    Draining = 1, "draining";
    /// A newer connection of the same agent took its place.
    Superseded = 2, "superseded";
    /// Too many connections or disks.
    Busy = 3, "busy";
    /// A step was not taken in its time.
    Timeout = 4, "timeout";
    /// No common protocol version.
    Protocol = 16, "protocol";
    /// The two sides serve different vaults.
    Vault = 17, "vault";
    /// The certificate holds no identity of Tidegate, or not the one claimed.
    Identity = 18, "identity";
    /// The certificate is valid, but for the other role.
    Role = 19, "role";
    /// A frame broke the codec's rules: checksum, version, type, length.
    Frame = 32, "frame";
    /// A message broke its layout or came where it does not belong.
    Message = 33, "message";
    /// A record broke its format, its limits, or leaves the disk.
    Record = 34, "record";
    /// A record's seq does not follow the one before.
    Seq = 35, "seq";
    /// A record's epoch is not the stream's.
    Epoch = 36, "epoch";
    /// A record's chain does not follow the one before.
    Chain = 37, "chain";
    /// More bytes were sent than credit was granted.
    Credit = 38, "credit";
    /// The agent's certificate does not name the disk.
    NotAuthorised = 48, "not-authorised";
    /// The epoch cannot be continued here: fork.
    MustFork = 49, "must-fork";
    /// Another epoch took over.
    Fenced = 50, "fenced";
    /// The disk's size differs from that in the vault.
    Size = 51, "size";
    /// The disk is open on another stream.
    InUse = 52, "in-use";
    /// The vault does not know the disk and may not create it.
    UnknownDisk = 53, "unknown-disk";
    /// The same record number came with another content.
    Conflict = 54, "conflict";
    /// The disk was shredded: nothing goes on under its name.
    Shredded = 55, "shredded";
    /// The gateway cannot at present; try again later.
    Unavailable = 64, "unavailable";
    /// The gateway failed.
    Internal = 65, "internal";
}

impl Code {
    /// As a QUIC error code.
    pub(super) fn var_int(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self.number())
    }

    /// From a QUIC error code.
    pub(super) fn from_var_int(number: quinn::VarInt) -> Self {
        Self::from_number(u32::try_from(number.into_inner()).unwrap_or(u32::MAX))
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Other(number) => write!(f, "code {number}"),
            known => f.write_str(known.as_str()),
        }
    }
}

impl Code {
    /// How an end with this code is to be met by the side that reads it.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::Done
            | Self::Draining
            | Self::Superseded
            | Self::Busy
            | Self::Timeout
            | Self::InUse
            | Self::Unavailable
            | Self::Internal => Fault::Retry,
            Self::Frame | Self::Conflict => Fault::Corrupt,
            _ => Fault::Reject,
        }
    }
}
