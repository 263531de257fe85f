//! A disk behind NBD as what the workload writes to.

use std::io;
use std::time::Duration;

use super::load::Target;
use crate::nbd::client::Client;
use crate::nbd::{Listen, ZeroFlags};

/// A guest would wait for ever; a demonstration has to end.
const PATIENCE: Duration = Duration::from_secs(180);

/// A disk behind NBD as the workload's target.
pub struct NbdTarget(Client);

impl NbdTarget {
    /// Connects to an export.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn open(listen: &Listen, export: &str) -> io::Result<Box<dyn Target>> {
        let client = Client::connect(listen, export).map_err(io::Error::other)?;
        client.set_timeout(Some(PATIENCE))?;
        Ok(Box::new(Self(client)))
    }
}

impl Target for NbdTarget {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data, false).map_err(io::Error::other)
    }
    fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.0.write_zeroes(offset, length, ZeroFlags::default()).map_err(io::Error::other)
    }
    fn trim(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.0.trim(offset, length, false).map_err(io::Error::other)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(io::Error::other)
    }
}
