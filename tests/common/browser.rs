//! A headless Chromium, driven over its debugging pipe: what a person would see of a page, without one.
//!
//! Commands and answers are JSON, each ended by a zero byte. The pipe needs no port and no library, and unlike the command
//! line it can be a phone, prefer a dark page, and stay open while a gateway goes away.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tidegate::cli::quickstart::child::{Child, Family};

use super::{PATIENCE, folder, succeed};

/// Longest wait for one answer: a machine busy with compilers starts a browser slowly.
const ANSWER_MAX: Duration = Duration::from_secs(120);

pub struct Browser {
    commands: File,
    answers: Receiver<Value>,
    session: String,
    sent: u64,
    /// What the browser complained of: errors of scripts, and what the page's policy forbade.
    pub complaints: Vec<String>,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Browser {
    /// One with an empty page. It talks to nobody but who is asked for.
    pub fn start() -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (to, from) = (path("to"), path("from"));
        succeed("mkfifo", &[&to, &from]);
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
            --disable-dev-shm-usage --disable-background-networking --disable-component-update --disable-sync \
            --disable-extensions --hide-scrollbars --user-data-dir=\"$3\" --remote-debugging-pipe about:blank 3<\"$1\" 4>\"$2\"";
        let arguments = ["-c", script, "sh", &to, &from, &path("profile")];
        let log = folder.path().join("log");
        let process = Child::start("chromium", &Family::default(), &log, Path::new("/bin/sh"), &arguments).unwrap();
        let commands = File::options().write(true).open(&to).unwrap();
        let pipe = File::open(&from).unwrap();
        let (sender, answers) = sync_channel(1024);
        std::thread::spawn(move || {
            for message in BufReader::new(pipe).split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).unwrap_or_default()).is_err() {
                    return;
                }
            }
        });
        let (session, complaints) = (String::new(), Vec::new());
        let mut browser = Self { commands, answers, session, sent: 0, complaints, process, _folder: folder };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Asks for one thing and waits for its answer.
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.sent += 1;
        let mut command = json!({ "id": self.sent, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let answer = self.answers.recv_timeout(ANSWER_MAX).unwrap_or_else(|error| {
                let log = std::fs::read_to_string(self.process.log()).unwrap_or_default();
                panic!("chromium does not answer {method} ({error}): {log}")
            });
            if answer["id"] == self.sent {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            // A gateway that is gone is not the page's fault.
            Some("Log.entryAdded") if params["entry"]["level"] == "error" && params["entry"]["source"] != "network" => {
                self.complaints.push(params["entry"].to_string());
            }
            _ => {}
        }
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", &json!({ "url": url }));
        assert!(answer.get("errorText").is_none(), "{url}: {answer}");
    }

    /// What an expression gives; a promise is waited for.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &params);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text that is shown of the element that a selector names; empty if there is none.
    pub fn text(&mut self, selector: &str) -> String {
        let found = self.value(&format!("document.querySelector({selector:?})?.innerText ?? ''"));
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, what: &str, expression: &str) {
        let reached =
            tidegate::cli::quickstart::child::wait_until(PATIENCE, || self.value(expression) == Value::Bool(true));
        assert!(reached, "{what} did not come true; the page shows:\n{}", self.text("body"));
    }

    /// From now on a window of this width, of a light or a dark desktop or phone.
    pub fn look_as(&mut self, width: u32, dark: bool) {
        let scale = if width < 600 { 2 } else { 1 };
        let (height, mobile) = (900, width < 600);
        self.call(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile }),
        );
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }, { "name": "prefers-reduced-motion", "value": "reduce" }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// A picture of the whole page.
    pub fn picture(&mut self, file: &Path) {
        let size =
            self.value("({ x: 0, y: 0, scale: 1, width: innerWidth, height: document.documentElement.scrollHeight })");
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": size });
        let answer = self.call("Page.captureScreenshot", &params);
        let png = base64::engine::general_purpose::STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        std::fs::write(file, png).unwrap();
    }
}
