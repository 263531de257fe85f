//! `tidegate top`: a gateway at a glance, full screen, from its admin port.
//!
//! - [`seen`] is what the admin port says, as far as it is shown.
//! - [`view`] is what the operator chose: which table, in which order, from where. Keys change it. Pure.
//! - [`draw`] makes a frame of both. Pure.
//! - This file owns the terminal and the clock. One thread asks the gateway, this one draws and reads keys; between them is
//!   a channel for one answer, so that a gateway that does not answer stops neither.
//!
//! The terminal is given back as it was however this ends: by a key, by a signal, by an error, by a panic.

mod draw;
mod view;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};

use self::view::{Step, View};
use super::admin::{AdminArgs, PATIENCE};
use super::seen::Seen;
use super::status;
use super::{Failure, Outcome};
use crate::fault::exit;
use crate::flow::{Clock as _, SystemClock};

/// Between two looks at the gateway.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for a key: how often the age that is shown, and a signal, are looked at.
const TURN: Duration = Duration::from_millis(200);
/// Keys taken before the next frame, so that a held key cannot starve it.
const KEYS_PER_TURN: usize = 64;

/// Options of `tidegate top`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
}

/// What the asking thread brings: what the gateway said, or why it said nothing.
type Answer = Result<Box<Seen>, String>;

/// Runs the verb until the operator leaves.
pub fn run(args: &Args) -> Outcome {
    let admin = args.admin.address()?;
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "top needs a terminal; tidegate status, with --watch or --json, says the same into a file or pipe",
        ));
    }
    // Started before the terminal is taken, so that what fails here is printed as usual.
    let asked = Asked::start(admin)?;
    let mut terminal = ratatui::try_init()?;
    let outcome = attend(&mut terminal, &asked, admin);
    ratatui::try_restore()?;
    outcome
}

/// The thread that asks, seen from here.
struct Asked {
    answers: Receiver<Answer>,
    /// A signal asks to end.
    ended: Arc<AtomicBool>,
}

impl Asked {
    fn start(admin: SocketAddr) -> Result<Self, Failure> {
        // The client wants one, also where nothing is encrypted.
        crate::vault::url::install_crypto();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
        let (sender, answers) = sync_channel(1);
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        std::thread::Builder::new().name("tg-ask".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = signalled() => flag.store(true, Ordering::Relaxed),
                    () = ask(&client, admin, &sender) => {}
                }
            });
        })?;
        Ok(Self { answers, ended })
    }
}

/// Asks again and again, until nobody listens.
async fn ask(client: &reqwest::Client, admin: SocketAddr, sender: &SyncSender<Answer>) {
    loop {
        let looked = async {
            let status = status::get(client, admin, "status").await?;
            let disks = status::get(client, admin, "disks").await?;
            let agents = status::get(client, admin, "agents").await?;
            Seen::of(status, disks, agents)
        };
        let answer = looked.await.map(Box::new).map_err(|failure| failure.text);
        // While one answer was not taken yet, the next ones are left out.
        if let Err(std::sync::mpsc::TrySendError::Disconnected(_)) = sender.try_send(answer) {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns when a signal asks the process to end.
async fn signalled() {
    let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
    let [Ok(mut terminate), Ok(mut hangup), Ok(mut interrupt)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Draws and reads keys until the operator or a signal ends it.
fn attend(terminal: &mut DefaultTerminal, asked: &Asked, admin: SocketAddr) -> Outcome {
    let clock = SystemClock::new();
    let mut view = View::new(admin.to_string());
    loop {
        match asked.answers.try_recv() {
            Ok(answer) => view.take(answer, clock.monotonic()),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) if asked.ended.load(Ordering::Relaxed) => return Ok(exit::OK),
            Err(TryRecvError::Disconnected) => return Err(Failure::error("the thread that asks the gateway ended")),
        }
        let now = clock.monotonic();
        terminal.draw(|frame| draw::draw(frame, &mut view, now))?;
        let mut patience = TURN;
        for _ in 0..KEYS_PER_TURN {
            if !event::poll(patience)? {
                break;
            }
            // Another event, a change of the window's size, is answered by the next frame.
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && view.press(key) == Step::Leave
            {
                return Ok(exit::OK);
            }
            patience = Duration::ZERO;
        }
    }
}
