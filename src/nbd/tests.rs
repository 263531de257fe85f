//! The server against our own client and against raw sockets.

mod codec;
mod file;
mod hostile;
mod serving;

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::proto::{self, Command, OptionHead, ReplyHead, Request};
use super::{Client, Export, Listen, Server, ServerLimits, StatusExtent, ZeroFlags};
use crate::flow::{Drain, DrainTrigger};

/// A disk in memory whose calls are written down and can be held.
pub(super) struct MemoryExport {
    name: String,
    data: Mutex<Vec<u8>>,
    calls: Mutex<Vec<String>>,
    /// Offsets whose reads and writes wait until they are taken out.
    held: Mutex<HashSet<u64>>,
    freed: Condvar,
    read_only: bool,
}

impl MemoryExport {
    fn new(name: &str, size_bytes: usize) -> Arc<Self> {
        Arc::new(Self::plain(name, size_bytes))
    }

    fn plain(name: &str, size_bytes: usize) -> Self {
        Self {
            name: name.to_owned(),
            data: Mutex::new(vec![0; size_bytes]),
            calls: Mutex::default(),
            held: Mutex::default(),
            freed: Condvar::new(),
            read_only: false,
        }
    }

    fn hold(&self, offset: u64) {
        self.held.lock().insert(offset);
    }

    fn free(&self, offset: u64) {
        self.held.lock().remove(&offset);
        self.freed.notify_all();
    }

    fn called(&self, call: &str, offset: u64) {
        self.calls.lock().push(format!("{call} {offset}"));
        let mut held = self.held.lock();
        while held.contains(&offset) {
            self.freed.wait(&mut held);
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().clone()
    }
}

impl Export for MemoryExport {
    fn name(&self) -> &str {
        &self.name
    }
    fn size_bytes(&self) -> u64 {
        self.data.lock().len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn multi_conn(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.called("read", offset);
        assert_ne!(offset, PANIC_AT, "asked to panic");
        buf.copy_from_slice(&self.data.lock()[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.called(if fua { "write-fua" } else { "write" }, offset);
        self.data.lock()[offset as usize..][..data.len()].copy_from_slice(&data);
        Ok(())
    }
    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        self.called(&format!("zero {flags:?}"), offset);
        self.data.lock()[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn trim(&self, offset: u64, _: u64, _: bool) -> io::Result<()> {
        self.called("trim", offset);
        Err(io::Error::new(io::ErrorKind::StorageFull, "no room for holes"))
    }
    fn flush(&self) -> io::Result<()> {
        self.called("flush", u64::MAX);
        Ok(())
    }
    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        self.called("status", offset);
        // More than was asked for, in equal pieces: the server must join and cut.
        Ok(vec![StatusExtent { length: length.div_ceil(2) + 7, hole: false, zero: true }; 3])
    }
}

/// A read here panics.
const PANIC_AT: u64 = 12_345;

/// A server on a thread of its own; stopped and joined on drop.
pub(super) struct Running {
    listen: Listen,
    trigger: DrainTrigger,
    thread: Option<JoinHandle<io::Result<()>>>,
    directory: tempfile::TempDir,
}

fn quick() -> ServerLimits {
    ServerLimits { drain_timeout: Duration::from_secs(2), ..ServerLimits::default() }
}

fn run(server: Server, drain: Drain) -> JoinHandle<io::Result<()>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(server.run(drain))
    })
}

impl Running {
    fn start(exports: Vec<Arc<dyn Export>>, limits: ServerLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(directory.path().join("nbd.sock"));
        let server = Server::bind(listen.clone(), exports, limits).unwrap();
        let (trigger, drain) = DrainTrigger::new();
        Self { listen, trigger, thread: Some(run(server, drain)), directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    fn client(&self, export: &str) -> Client {
        let client = Client::connect(&self.listen, export).unwrap();
        client.set_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A raw connection after an EXPORT_NAME handshake without structured replies.
    fn raw_requests(&self, export: &str) -> UnixStream {
        let mut stream = self.raw();
        let mut out = 3_u32.to_be_bytes().to_vec();
        OptionHead { option: proto::option::EXPORT_NAME, data_bytes: export.len() as u32 }.encode(&mut out);
        out.extend_from_slice(export.as_bytes());
        stream.write_all(&out).unwrap();
        stream.read_exact(&mut [0; proto::GREETING_BYTES + 10]).unwrap();
        stream
    }

    fn stop(&mut self) -> io::Result<()> {
        self.trigger.start();
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let stopped = self.stop();
        if !std::thread::panicking() {
            stopped.unwrap();
        }
    }
}

/// Only a broken server lets a client wait this long.
const PATIENCE: Duration = Duration::from_secs(30);

fn request(command: Command, cookie: u64, offset: u64, length: u32) -> [u8; proto::REQUEST_BYTES] {
    Request { flags: 0, command, cookie, offset, length }.encode()
}

fn simple_reply(stream: &mut UnixStream) -> (u64, u32) {
    let mut bytes = [0; proto::SIMPLE_REPLY_BYTES];
    stream.read_exact(&mut bytes).unwrap();
    match ReplyHead::decode(&bytes).unwrap() {
        ReplyHead::Simple { error, cookie } => (cookie, error),
        other => panic!("{other:?}"),
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 5 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("in vain: {what}");
}
