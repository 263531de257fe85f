//! The forms in which an image file is written, and where in the file each byte of the disk stands. Pure.
//!
//! ```text
//!  raw, vhd-fixed   disk byte n is file byte n                        │ footer of a VHD
//!  qcow2            header, tables │ clusters that hold something, one after the other
//!  vhd              header, table  │ blocks that hold something, a bitmap before each  │ footer
//!  vmdk             header, tables │ grains that hold something, one after the other
//! ```
//!
//! The plan of a restore says beforehand which parts of the disk hold anything, so every place is known before the first
//! byte is read: messages are written in whatever order they come, by as many threads as there are, and an interrupted run
//! goes on in the same places. What is no content of the disk (the frame) depends on nothing else; it is written last,
//! its first bytes at the very end, so that an unfinished file is no image of its form, whatever its name.
//!
//! Memory is a run for each unbroken stretch of units that hold something, fewer than the plan has ranges.

mod qcow2;
mod units;
mod vhd;
mod vmdk;

use std::fmt;

use self::units::Units;
use crate::fault::{Classify, Fault};

/// The form of an image file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Format {
    /// The bytes of the disk, with holes.
    #[default]
    Raw,
    /// Version 3 of qcow2, clusters of 64 KiB.
    Qcow2,
    /// A VHD that grows, blocks of 2 MiB.
    Vhd,
    /// A VHD of fixed size, a multiple of 1 MiB as Azure wants it; a sparse file all the same.
    VhdFixed,
    /// A monolithic sparse VMDK, grains of 64 KiB.
    Vmdk,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vhd, Self::VhdFixed, Self::Vmdk];

    /// Its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::VhdFixed => "vhd-fixed",
            Self::Vmdk => "vmdk",
        }
    }

    /// How names of such files usually end.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Raw => "img",
            Self::Qcow2 => "qcow2",
            Self::Vhd | Self::VhdFixed => "vhd",
            Self::Vmdk => "vmdk",
        }
    }

    /// The size of the disk in such a file is a multiple of this; what is added at its end is zero.
    const fn step_bytes(self) -> u64 {
        match self {
            Self::Raw => 1,
            Self::Qcow2 => 512,
            // Azure takes no other; one rule for both, so that one becomes the other without a change of size.
            Self::Vhd | Self::VhdFixed => 1 << 20,
            Self::Vmdk => vmdk::GRAIN_BYTES,
        }
    }

    /// The largest disk that fits.
    const fn bytes_max(self) -> u64 {
        match self {
            Self::Raw | Self::Qcow2 | Self::VhdFixed => u64::MAX,
            Self::Vhd => vhd::GROWING_BYTES_MAX,
            Self::Vmdk => vmdk::BYTES_MAX,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A disk that a form cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too large.
    #[error("{format} holds at most {bytes_max} bytes, the disk has {disk_bytes}: use raw, qcow2 or vhd-fixed")]
    TooLarge {
        /// The form.
        format: Format,
        /// The disk's size.
        disk_bytes: u64,
        /// What it holds.
        bytes_max: u64,
    },
    /// A VMDK names its own file between quotes.
    #[error("a vmdk cannot be named {name:?}: use a name of at most 255 bytes without quotes and control characters")]
    Name {
        /// The name.
        name: String,
    },
}

impl Classify for FormatError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// Where everything of an image stands in its file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    format: Format,
    disk_bytes: u64,
    virtual_bytes: u64,
    file_bytes: u64,
    shape: Shape,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Shape {
    Raw,
    Qcow2(qcow2::Shape),
    VhdFixed,
    Vhd(vhd::Shape),
    Vmdk(vmdk::Shape),
}

impl Layout {
    /// The bytes of the disk as they are.
    #[must_use]
    pub const fn raw(disk_bytes: u64) -> Self {
        let format = Format::Raw;
        Self { format, disk_bytes, virtual_bytes: disk_bytes, file_bytes: disk_bytes, shape: Shape::Raw }
    }

    /// An image of a disk of which `zeroes` (offset and length, ascending, never adjacent) hold nothing. `name` is that of
    /// the file.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn new(format: Format, disk_bytes: u64, zeroes: &[(u64, u64)], name: &str) -> Result<Self, FormatError> {
        let bytes_max = format.bytes_max();
        let virtual_bytes = disk_bytes.next_multiple_of(format.step_bytes());
        if virtual_bytes > bytes_max {
            return Err(FormatError::TooLarge { format, disk_bytes, bytes_max });
        }
        let content = || units::content(disk_bytes, zeroes);
        let (shape, file_bytes) = match format {
            Format::Raw => return Ok(Self::raw(disk_bytes)),
            Format::Qcow2 => {
                let shape = qcow2::Shape::new(virtual_bytes, content());
                let file_bytes = shape.file_bytes();
                (Shape::Qcow2(shape), file_bytes)
            }
            Format::VhdFixed => (Shape::VhdFixed, virtual_bytes + vhd::FOOTER_BYTES),
            Format::Vhd => {
                let shape = vhd::Shape::new(virtual_bytes, content());
                let file_bytes = shape.file_bytes();
                (Shape::Vhd(shape), file_bytes)
            }
            Format::Vmdk => {
                let shape = vmdk::Shape::new(virtual_bytes, content(), name)?;
                let file_bytes = shape.file_bytes();
                (Shape::Vmdk(shape), file_bytes)
            }
        };
        Ok(Self { format, disk_bytes, virtual_bytes, file_bytes, shape })
    }

    /// Its form.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Bytes of the disk as the file states them: more than the disk has where the form counts in larger steps.
    #[must_use]
    pub const fn virtual_bytes(&self) -> u64 {
        self.virtual_bytes
    }

    /// Length of the file.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    const fn units(&self) -> Option<&Units> {
        match &self.shape {
            Shape::Raw | Shape::VhdFixed => None,
            Shape::Qcow2(shape) => Some(&shape.units),
            Shape::Vhd(shape) => Some(&shape.units),
            Shape::Vmdk(shape) => Some(&shape.units),
        }
    }

    /// Where a byte of the disk stands in the file, and how many bytes from there on stand as they do on the disk. `None`:
    /// the byte was said to hold nothing, and has no place.
    #[must_use]
    pub fn place(&self, offset_bytes: u64) -> Option<(u64, u64)> {
        match self.units() {
            None => Some((offset_bytes, self.disk_bytes.saturating_sub(offset_bytes))),
            Some(units) => units.place(offset_bytes),
        }
    }

    /// Hands on, piece by piece, all that is not content of the disk: what makes an image of the file, last. `unique` tells this
    /// image from others.
    ///
    /// # Errors
    /// Those of `put`.
    pub fn frame<E>(&self, unique: [u8; 16], mut put: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        match &self.shape {
            Shape::Raw => Ok(()),
            Shape::Qcow2(shape) => shape.frame(&mut put),
            Shape::VhdFixed => put(self.virtual_bytes, &vhd::footer(vhd::Kind::Fixed, self.virtual_bytes, unique)),
            Shape::Vhd(shape) => shape.frame(unique, &mut put),
            Shape::Vmdk(shape) => shape.frame(unique, &mut put),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
