//! Every command that the pages for operators name is one of the program's, with its options.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::tidegate;

const PAGES: [&str; 6] =
    ["README.md", "docs/OPERATING.md", "docs/RUNBOOK.md", "docs/NBD.md", "docs/JOURNAL.md", "dashboards/README.md"];

/// What stands after a word `tidegate` in shell blocks and in code within the text.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, part) in page.split("```").enumerate() {
        let pieces: Vec<String> = match at % 2 {
            0 => part.replace('\n', " ").split('`').skip(1).step_by(2).map(str::to_owned).collect(),
            _ => part.lines().map(str::to_owned).collect(),
        };
        for piece in pieces {
            let begins = |at: usize| at == 0 || " (\"".contains(&piece[at - 1..at]);
            let calls = piece.match_indices("tidegate ").filter(|(at, _)| piece.is_char_boundary(at.saturating_sub(1)));
            found.extend(calls.filter(|(at, _)| begins(*at)).map(|(at, call)| piece[at + call.len()..].to_owned()));
        }
    }
    found
}

/// What `tidegate VERB --help` says, for each verb that was asked for.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, String>);

impl Helps {
    fn of(&mut self, verb: &[String]) -> &str {
        self.0.entry(verb.to_vec()).or_insert_with(|| {
            let arguments: Vec<&str> = verb.iter().map(String::as_str).chain(["--help"]).collect();
            let (code, out, err) = tidegate(&arguments);
            assert_eq!(code, 0, "{verb:?}: {err}");
            out
        })
    }

    /// Verbs below one, and whether there must be one.
    fn below(&mut self, verb: &[String]) -> (Vec<String>, bool) {
        let help = self.of(verb);
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
        (names, help.contains("<COMMAND>"))
    }

    /// What is wrong with a call.
    fn mistake(&mut self, call: &str) -> Option<String> {
        // Options of another program, for which `tidegate` is a user.
        if call.starts_with('-') {
            return None;
        }
        let (mut verb, mut options) = (Vec::new(), Vec::new());
        for word in call.split_whitespace() {
            let word = word.trim_matches(['"', '\'', ')', ',', ';', '[', ']']);
            if word.starts_with(['|', '#', '>', '<', '&']) || word.starts_with("2>") {
                break;
            }
            let (below, needed) = self.below(&verb);
            if let Some(option) = word.strip_prefix("--") {
                options.push(format!("--{}", option.split('=').next().unwrap_or(option)));
            } else if below.iter().any(|name| name == word) {
                verb.push(word.to_owned());
            } else if needed && options.is_empty() && !word.starts_with('-') {
                return Some(format!("{word} is no verb of tidegate {}", verb.join(" ")));
            }
        }
        let levels: Vec<String> = (0..=verb.len()).map(|length| self.of(&verb[..length]).to_owned()).collect();
        let known = |option: &String| {
            levels.iter().any(|help| help.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == option))
        };
        let unknown = options.iter().find(|option| !known(option))?;
        Some(format!("tidegate {} has no {unknown}", verb.join(" ")))
    }
}

#[test]
fn every_command_of_the_pages_is_one_of_the_program() {
    let (mut helps, mut mistakes, mut count) = (Helps::default(), Vec::new(), 0);
    for name in PAGES {
        let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        for call in commands(&page) {
            count += 1;
            mistakes.extend(helps.mistake(&call).map(|mistake| format!("{name}: tidegate {call}: {mistake}")));
        }
    }
    assert!(count > 60, "only {count} commands found");
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    for wrong in ["keeper fly", "status --wtach", "pki issue --dir pki gateway --hots x", "fly"] {
        assert!(helps.mistake(wrong).is_some(), "{wrong}");
    }
}
