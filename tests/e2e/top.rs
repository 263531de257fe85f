//! `tidegate top` in a terminal that util-linux's `script` makes, at a real gateway.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;

use tidegate::cli::quickstart::child::wait_until;

use crate::common::{PATIENCE, Scene, Setting, empty, program, tidegate, turn};

const LEAVES_SCREEN: &str = "\u{1b}[?1049l";
const SHOWS_CURSOR: &str = "\u{1b}[?25h";

/// The program in its terminal: keys go in, what it draws comes out.
struct Pty {
    process: Child,
    keys: ChildStdin,
    drawn: Arc<Mutex<String>>,
}

impl Pty {
    fn start(admin: &str) -> Self {
        let command = format!("stty rows 40 cols 120; exec {} top --admin {admin}", program().display());
        let mut process = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is of Debian's bsdutils, which is always there");
        let (keys, mut output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let drawn = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&drawn);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { process, keys, drawn }
    }

    fn text(&self) -> String {
        self.drawn.lock().unwrap().clone()
    }

    /// Waits for a word: what is blank between words may not be drawn again.
    fn wait(&self, part: &str) {
        assert!(wait_until(PATIENCE, || self.text().contains(part)), "{part:?} was not drawn: {:?}", self.text());
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Its exit code, once it has given the terminal back.
    fn end(mut self) -> i32 {
        let mut code = None;
        wait_until(PATIENCE, || {
            code = self.process.try_wait().unwrap().map(|status| status.code().unwrap_or(-1));
            code.is_some()
        });
        self.wait(LEAVES_SCREEN);
        self.wait(SHOWS_CURSOR);
        code.expect("it did not end")
    }

    /// The process id of the program itself, the only child of `script`.
    fn program_id(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        std::fs::read_to_string(children).unwrap().split_whitespace().next().unwrap().to_owned()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn top_shows_a_gateway_in_a_terminal_and_gives_the_terminal_back_however_it_ends() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["mail"], empty(16 << 20));
    scene.wait_copied("mail");
    let admin = scene.site.admin_address().to_string();

    let mut pty = Pty::start(&admin);
    for part in ["gw1", "ready", "pipeline", "protected", "mail", "quit"] {
        pty.wait(part);
    }
    pty.press("2");
    pty.wait("TRANSPORT");
    pty.press("?");
    pty.wait("closes");
    pty.press("xq");
    assert_eq!(pty.end(), 0);

    let pty = Pty::start(&admin);
    pty.wait("ready");
    scene.gateway.take().unwrap().kill().unwrap();
    pty.wait("answers");
    let ended = Command::new("kill").args(["-TERM", &pty.program_id()]).status().unwrap();
    assert!(ended.success());
    assert_eq!(pty.end(), 0, "a signal ends it as a key does");

    let (code, shown, said) = tidegate(&["top", "--admin", &admin]);
    assert_eq!((code, shown.as_str()), (2, ""), "no terminal here");
    assert!(said.contains("tidegate status"), "{said}");
}
