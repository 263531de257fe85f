//! A machine of QEMU around disks that are served: it boots, says something on its serial console, shows its screen, and ends.
//!
//! It has no network, so that it meets nobody whom the machine that it is a copy of knows, and may do nothing that QEMU can be
//! kept from: what was brought back may be in somebody else's hands.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::show_size;
use crate::flow::Drain;

/// The end of what a console said that is kept: some screens of it.
const HEARD_BYTES_MAX: usize = 16 << 10;
/// The longest text that is waited for: it must be found in what is kept, wherever reads cut it.
pub const UNTIL_BYTES_MAX: usize = 1 << 10;
const _: () = assert!(UNTIL_BYTES_MAX < HEARD_BYTES_MAX, "a text that is waited for fits into what is kept");
/// How often it is looked how the machine stands.
const POLL: Duration = Duration::from_millis(20);
/// What is on the screen comes a moment after what the console says.
const SCREEN_SETTLES: Duration = Duration::from_secs(1);
/// How long the last words of a QEMU that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long QEMU's monitor may take for an answer.
const MONITOR_PATIENCE: Duration = Duration::from_secs(20);
/// Most that the monitor may say for one picture.
const MONITOR_BYTES_MAX: u64 = 1 << 20;
/// What QEMU is kept from: starting programs, becoming somebody else, and old system calls.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// How the machine meets its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Bus {
    /// As guests of QEMU do; Linux and the BSDs have the driver.
    #[default]
    Virtio,
    /// As machines of metal do, for systems without that driver.
    Sata,
}

/// A kernel from beside the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first file system.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: String,
}

/// A disk that is served over NBD at a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
}

/// What a machine is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// QEMU.
    pub qemu: PathBuf,
    /// Memory.
    pub memory_bytes: u64,
    /// Processors.
    pub processors: u16,
    /// How it meets its disks.
    pub bus: Bus,
    /// Its kernel, unless it boots what its first disk has.
    pub kernel: Option<Kernel>,
    /// More arguments of QEMU.
    pub more: Vec<String>,
    /// Its disks; it boots from the first.
    pub disks: Vec<Served>,
}

/// What is waited for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The machine is up when its console has said this.
    pub until: String,
    /// How long that may take.
    pub limit: Duration,
    /// Where the picture of its screen goes: PNG if the name ends so, PPM otherwise.
    pub screenshot: Option<PathBuf>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The console said what was waited for.
    Up,
    /// It did not, in time.
    Late,
    /// The machine switched itself off, or QEMU ended, before it did; how, and what QEMU said.
    Off(ExitStatus, String),
    /// Whoever waits was asked to stop.
    Stopped,
}

/// How a machine fared.
#[derive(Debug)]
pub struct Booted {
    /// How it ended.
    pub end: End,
    /// From switching it on to that.
    pub took: Duration,
    /// The end of what the console said, fit to be read.
    pub said: String,
    /// Why there is no picture, if one was wanted.
    pub no_screenshot: Option<String>,
}

impl Machine {
    /// What QEMU is called with.
    #[must_use]
    pub fn arguments(&self, monitor: &Path, accelerator: Accelerator) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        let mut add = |option: &str, value: OsString| all.extend([option.into(), value]);
        for (option, value) in [
            ("-name", "tidegate-drill"),
            ("-machine", "q35"),
            ("-cpu", "max"),
            ("-nic", "none"),
            ("-display", "none"),
            ("-vga", "std"),
            ("-sandbox", SANDBOX),
            ("-chardev", "stdio,id=console,signal=off"),
            ("-serial", "chardev:console"),
            ("-device", "virtio-rng-pci"),
        ] {
            add(option, value.into());
        }
        add("-m", format!("{}M", self.memory_bytes >> 20).into());
        add("-smp", self.processors.to_string().into());
        add("-chardev", format!("socket,id=monitor,path={},server=on,wait=off", option_text(monitor)).into());
        add("-mon", "chardev=monitor,mode=control".into());
        for (at, disk) in self.disks.iter().enumerate() {
            let server = json!({ "type": "unix", "path": disk.socket.display().to_string() });
            let file = json!({ "driver": "nbd", "server": server, "export": disk.export });
            let node = json!({ "driver": "raw", "node-name": format!("disk{at}"), "file": file });
            add("-blockdev", node.to_string().into());
            // 0 is QEMU's own, for a kernel from beside the disks.
            let turn = at + 1;
            let device = match self.bus {
                Bus::Virtio => format!("virtio-blk-pci,drive=disk{at},bootindex={turn}"),
                Bus::Sata => format!("ide-hd,drive=disk{at},bus=ide.{at},bootindex={turn}"),
            };
            add("-device", device.into());
        }
        if let Some(Kernel { kernel, initrd, append }) = &self.kernel {
            add("-kernel", kernel.into());
            if let Some(initrd) = initrd {
                add("-initrd", initrd.into());
            }
            add("-append", append.into());
        }
        if accelerator == Accelerator::Processor {
            add("-accel", "kvm".into());
        }
        add("-accel", "tcg".into());
        let alone: [OsString; 2] = ["-nodefaults".into(), "-no-user-config".into()];
        alone.into_iter().chain(all).chain(self.more.iter().map(Into::into)).collect()
    }

    /// Switches it on, waits for what is wished or for `stop`, and switches it off. The monitor's socket is made at `monitor`.
    /// Blocks.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn boot(&self, monitor: &Path, wish: &Wish, stop: &Drain) -> io::Result<Booted> {
        let started = Instant::now();
        let mut accelerator = Accelerator::Processor;
        let mut machine = Running::start(&self.qemu, self.arguments(monitor, accelerator), &wish.until)?;
        let (end, took) = loop {
            if let Some(after) = machine.console.lock().found {
                break (End::Up, after);
            }
            if let Some(status) = machine.qemu.try_wait()? {
                let end = machine.off(status);
                if accelerator == Accelerator::Emulation || !is_kvm_broken(&end) {
                    break (end, started.elapsed());
                }
                tracing::warn!("QEMU and this machine's KVM do not go together: the processor is emulated");
                accelerator = Accelerator::Emulation;
                // It was the machine's that is gone; QEMU makes it anew.
                let _ = std::fs::remove_file(monitor);
                machine = Running::start(&self.qemu, self.arguments(monitor, accelerator), &wish.until)?;
                continue;
            }
            if stop.started() {
                break (End::Stopped, started.elapsed());
            }
            if started.elapsed() >= wish.limit {
                break (End::Late, started.elapsed());
            }
            std::thread::sleep(POLL);
        };
        let no_screenshot = match (&wish.screenshot, &end) {
            (Some(_), End::Off(..)) => Some("the machine was off already".to_owned()),
            (Some(file), End::Up | End::Late) => {
                std::thread::sleep(SCREEN_SETTLES);
                screenshot(monitor, file).err().map(|error| format!("{}: {error}", file.display()))
            }
            (None, _) | (_, End::Stopped) => None,
        };
        let said = machine.console.lock().text();
        Ok(Booted { end, took, said, no_screenshot })
    }

    /// For people: what it has of a machine.
    #[must_use]
    pub fn shown(&self) -> String {
        let firmware = if self.kernel.is_some() { "a kernel from beside its disks" } else { "what its first disk has" };
        format!("{} processors, {}, booting {firmware}", self.processors, show_size(self.memory_bytes))
    }
}

/// What runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself where KVM is to be had, else emulation: slow, but the same.
    Processor,
    /// Emulation alone.
    Emulation,
}

/// Whether QEMU gave up over KVM, which some machines offer inside of others and cannot keep.
fn is_kvm_broken(end: &End) -> bool {
    matches!(end, End::Off(status, complaint) if status.signal().is_some() && complaint.contains("kvm"))
}

/// A path as the value within an option of QEMU, where commas part and two of them stand for one.
fn option_text(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A QEMU at work. Dropped, it is ended.
struct Running {
    qemu: Child,
    console: Arc<Mutex<Heard>>,
    complaints: Arc<Mutex<Heard>>,
    /// Each tells when there is nothing more to hear.
    listeners: Vec<Receiver<()>>,
}

impl Running {
    fn start(program: &Path, arguments: Vec<OsString>, until: &str) -> io::Result<Self> {
        let mut qemu = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (console, complaints) = (Heard::new(until), Heard::new(""));
        let (out, err) = (qemu.stdout.take(), qemu.stderr.take());
        let mut running = Self { qemu, console, complaints, listeners: Vec::new() };
        running.listen(out, Arc::clone(&running.console))?;
        running.listen(err, Arc::clone(&running.complaints))?;
        Ok(running)
    }

    /// Hears what comes until its end, in a thread of its own.
    fn listen(&mut self, from: Option<impl Read + Send + 'static>, into: Arc<Mutex<Heard>>) -> io::Result<()> {
        let Some(mut from) = from else { return Ok(()) };
        let (started, (done, listener)) = (Instant::now(), sync_channel(1));
        self.listeners.push(listener);
        std::thread::Builder::new().name("tg-drill".into()).spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count) = from.read(&mut piece)
                && count > 0
            {
                into.lock().hear(&piece[..count], started.elapsed());
            }
            // Nobody waits any more where nobody is there.
            let _ = done.send(());
        })?;
        Ok(())
    }

    /// The end of a QEMU that is gone, with its last words; it may have said what was waited for just before.
    fn off(&mut self, status: ExitStatus) -> End {
        for listener in self.listeners.drain(..) {
            // Whatever it started and left behind may hold its ends, and is not waited for.
            let _ = listener.recv_timeout(LAST_WORDS);
        }
        if self.console.lock().found.is_some() { End::Up } else { End::Off(status, self.complaints.lock().text()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The end of what was said, and whether a text was among all of it. Pure.
#[derive(Debug)]
struct Heard {
    wanted: Vec<u8>,
    tail: Vec<u8>,
    found: Option<Duration>,
}

impl Heard {
    fn new(wanted: &str) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { wanted: wanted.into(), tail: Vec::new(), found: None }))
    }

    fn hear(&mut self, said: &[u8], after: Duration) {
        // A text may begin in what came before.
        let from = self.tail.len().saturating_sub(self.wanted.len().saturating_sub(1));
        self.tail.extend_from_slice(said);
        let length = self.wanted.len();
        let found = length > 0 && self.tail[from..].windows(length).any(|window| window == self.wanted);
        if found && self.found.is_none() {
            self.found = Some(after);
        }
        let surplus = self.tail.len().saturating_sub(HEARD_BYTES_MAX);
        self.tail.drain(..surplus);
    }

    /// Fit to be read: without what moves the cursor and paints.
    fn text(&self) -> String {
        let mut text = String::new();
        let heard = String::from_utf8_lossy(&self.tail);
        let mut characters = heard.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                    // Up to its last letter.
                    while characters.next().is_some_and(|inner| !('@'..='~').contains(&inner)) {}
                }
                '\u{1b}' => {
                    characters.next();
                }
                '\n' | '\t' => text.push(character),
                _ if character.is_control() => {}
                _ => text.push(character),
            }
        }
        text.trim().to_owned()
    }
}

/// Has QEMU write a picture of the screen.
fn screenshot(monitor: &Path, file: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(monitor)?;
    stream.set_read_timeout(Some(MONITOR_PATIENCE))?;
    stream.set_write_timeout(Some(MONITOR_PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?.take(MONITOR_BYTES_MAX));
    let mut arguments = json!({ "filename": file.display().to_string() });
    if file.extension().is_some_and(|ending| ending == "png") {
        // Of QEMU before 7.1, or built without: its answer says so.
        arguments["format"] = "png".into();
    }
    for command in
        [json!({ "execute": "qmp_capabilities" }), json!({ "execute": "screendump", "arguments": arguments })]
    {
        stream.write_all(format!("{command}\n").as_bytes())?;
        answer(&mut answers)?;
    }
    Ok(())
}

/// Waits for the answer to a command; what the monitor says besides is not of interest.
fn answer(answers: &mut impl BufRead) -> io::Result<()> {
    loop {
        let mut line = String::new();
        if answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("QEMU's monitor gave no answer"));
        }
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(error) = told.get("error") {
            let said = error["desc"].as_str().unwrap_or_default();
            return Err(io::Error::other(format!(
                "QEMU refused: {said} (a name that ends in .ppm asks the least of it)"
            )));
        }
        if told.get("return").is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::flow::DrainTrigger;

    fn machine(qemu: PathBuf) -> Machine {
        let disk = |name: &str| Served { socket: format!("/run/a,b/{name}.sock").into(), export: name.into() };
        let disks = vec![disk("web.sda"), disk("web.sdb")];
        let (memory_bytes, processors, bus) = (1 << 30, 2, Bus::Virtio);
        Machine { qemu, memory_bytes, processors, bus, kernel: None, more: vec!["-S".into()], disks }
    }

    /// A program that does what the script says, whatever it is called with.
    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn boot(text: &str, limit: Duration) -> Booted {
        let folder = tempfile::tempdir().unwrap();
        let wish = Wish { until: "login:".into(), limit, screenshot: None };
        let (_trigger, stop) = DrainTrigger::new();
        machine(script(folder.path(), text)).boot(&folder.path().join("m.sock"), &wish, &stop).unwrap()
    }

    #[test]
    fn a_machine_has_its_disks_in_their_order_no_network_and_what_else_is_asked_for_last() {
        let mut machine = machine("qemu".into());
        let words = |machine: &Machine| {
            let arguments = machine.arguments(Path::new("/run/a,b/m.sock"), Accelerator::Processor);
            arguments.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let all = words(&machine);
        let line = all.join(" ");
        for part in ["-nodefaults", "-nic none", "path=/run/a,,b/m.sock,server=on", "-m 1024M", "-smp 2"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let nodes: Vec<Value> = all.iter().filter_map(|word| serde_json::from_str(word).ok()).collect();
        assert_eq!(nodes.iter().filter(|node| node["driver"] == "raw").count(), 2);
        let first = nodes.iter().find(|node| node["node-name"] == "disk0").unwrap();
        assert_eq!(first["file"]["server"]["path"], "/run/a,b/web.sda.sock");
        assert_eq!(first["file"]["export"], "web.sda");
        assert!(line.contains("virtio-blk-pci,drive=disk0,bootindex=1") && !line.contains("-kernel"), "{line}");
        assert_eq!(all.last().unwrap(), "-S");
        machine.bus = Bus::Sata;
        machine.kernel =
            Some(Kernel { kernel: "/k".into(), initrd: Some("/i".into()), append: "root=/dev/sda1".into() });
        let line = words(&machine).join(" ");
        assert!(line.contains("ide-hd,drive=disk1,bus=ide.1,bootindex=2"), "{line}");
        assert!(line.contains("-kernel /k -initrd /i -append root=/dev/sda1"), "{line}");
    }

    #[test]
    fn a_text_is_found_wherever_it_is_cut_and_not_in_what_comes_after() {
        let heard = Heard::new("login:");
        let mut heard = heard.lock();
        heard.hear(b"Debian GNU/Linux\r\nguest lo", Duration::from_secs(1));
        assert_eq!(heard.found, None);
        heard.hear(b"gin: ", Duration::from_secs(2));
        heard.hear(b"login:", Duration::from_secs(3));
        assert_eq!(heard.found, Some(Duration::from_secs(2)));
        assert_eq!(heard.text(), "Debian GNU/Linux\nguest login: login:");
        for _ in 0..100 {
            heard.hear(&[b'y'; 1000], Duration::ZERO);
        }
        assert!(heard.tail.len() <= HEARD_BYTES_MAX);
    }

    #[test]
    fn what_paints_is_left_out_of_what_is_read() {
        let heard = Heard::new("");
        heard.lock().hear(b"\x1b[2J\x1b[1;31mOK\x1b[0m\x07 up\x1bc\r\n\tdone \xff\x1b[", Duration::ZERO);
        assert_eq!(heard.lock().text(), "OK up\n\tdone \u{fffd}");
    }

    #[test]
    fn a_machine_is_up_late_or_off_and_never_left_running() {
        let patient = Duration::from_secs(60);
        let up = boot("echo guest login:; exec sleep 600", patient);
        assert_eq!((up.end, up.said.as_str()), (End::Up, "guest login:"));
        let late = boot("echo GRUB; exec sleep 600", Duration::from_millis(300));
        assert_eq!(late.end, End::Late);
        assert!(late.took >= Duration::from_millis(300));
        let off = boot("echo GRUB; echo no such disk >&2; exit 3", patient);
        let End::Off(status, complaint) = off.end else { panic!("{:?}", off.end) };
        assert_eq!((status.code(), complaint.as_str(), off.said.as_str()), (Some(3), "no such disk", "GRUB"));
        // Said, and off at once.
        assert_eq!(boot("echo guest login:", patient).end, End::Up);
    }

    #[test]
    fn a_stop_ends_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let wish = Wish { until: "login:".into(), limit: Duration::from_secs(600), screenshot: None };
        let (trigger, stop) = DrainTrigger::new();
        trigger.start();
        let machine = machine(script(folder.path(), "exec sleep 600"));
        let stopped = machine.boot(&folder.path().join("m.sock"), &wish, &stop).unwrap();
        assert_eq!(stopped.end, End::Stopped);
    }

    #[test]
    fn the_monitor_says_why_there_is_no_picture() {
        let asked = |said: &str| answer(&mut said.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(asked("{\"QMP\":{}}\n{\"event\":\"RESUME\"}\n{\"return\":{}}\n"), Ok(()));
        let refused = asked("{\"error\":{\"class\":\"GenericError\",\"desc\":\"no PNG\"}}\n").unwrap_err();
        assert!(refused.contains("no PNG") && refused.contains(".ppm"), "{refused}");
        assert!(asked("").is_err());
    }
}
