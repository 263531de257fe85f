//! The status page in a real browser, at a real gateway whose vault goes away, and then the gateway itself.
//!
//! Pictures of each state go to the folder that `TIDEGATE_PAGE_DIR` names, or to `target/tmp/page`: look at them after a
//! change, for no assertion sees what is ugly.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use loadgen::sink::{Account, Limits, Sink, Weather};
use serde_json::{Value, json};

use crate::common::browser::Browser;
use crate::common::{Scene, Setting, empty, turn};

const DISK_BYTES: u64 = 64 << 20;
const DESKTOP: u32 = 1280;
const PHONE: u32 = 390;

/// The smallest contrast between any text and what is behind it, and where.
const CONTRAST: &str = r"(() => {
  const parse = (text) => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color[3] > 0) return color;
    }
    return [255, 255, 255, 1];
  };
  let worst = [21, ''];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest('script, noscript, svg')) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, node.tagName + ' ' + node.className + ': ' + node.textContent];
  }
  return worst;
})()";

fn pictures() -> PathBuf {
    let named = std::env::var_os("TIDEGATE_PAGE_DIR").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Nothing reaches beyond the window, which a phone would make wider for it.
fn assert_fits(browser: &mut Browser, width: u32, what: &str) {
    let needed = browser.value("document.documentElement.scrollWidth").as_u64().unwrap();
    assert!(needed <= u64::from(width), "{what}: {needed} wide in a window of {width}");
}

/// Pictures of what is shown now, for each way to look at it; each must be readable and fit.
fn take_pictures(browser: &mut Browser, name: &str, is_dimmed: bool) {
    for (width, dark, way) in
        [(DESKTOP, false, "light"), (DESKTOP, true, "dark"), (PHONE, false, "phone"), (PHONE, true, "phone-dark")]
    {
        browser.look_as(width, dark);
        assert_fits(browser, width, &format!("{name} {way}"));
        let contrast = browser.value(CONTRAST);
        assert!(is_dimmed || contrast[0].as_f64().unwrap() >= 4.5, "{name} {way}: hard to read: {contrast}");
        browser.picture(&pictures().join(format!("{name}-{way}.png")));
    }
    browser.look_as(DESKTOP, false);
}

/// Answers that no gateway should give, in place of its own: names that are markup, and very many disks.
fn hostile() -> String {
    let name = "<img src=x onerror=\"window.harmed=1\"><script>window.harmed=1</script>";
    let disk = |at: usize| {
        let disk = if at == 0 { name.to_owned() } else { format!("disk{at:04}") };
        json!({ "disk": disk, "agent": name, "condition": if at == 0 { name } else { "protected" }, "epoch": 1, "journaled_seq": 5,
            "vaulted_seq": 5, "rpo_seconds": 1000 - at, "dirty_bytes": 0, "unvaulted_bytes": 0 })
    };
    let disks: Vec<Value> = (0..1000).map(disk).collect();
    let agents = json!([{ "agent": name, "address": name, "transport": name, "connected_seconds": 1, "disks": [], "rpo_seconds": 1 }]);
    let finding = json!({ "severity": name, "stage": name, "text": name, "next": name, "runbook": name });
    let status = json!({ "gateway": name, "vault": name, "version": name, "ready": true, "reason": name, "trouble": name,
        "up_seconds": 1, "agents": 1, "disks": [["protected", 1000], [name, 3]], "worst": [name, 5], "dirty_bytes": 1, "unvaulted_bytes": 1,
        "journal_used_bytes": 1, "journal_capacity_bytes": 2, "journal_level": name, "journal_heading": null, "journal_backend": name,
        "stages": null, "findings": [finding] });
    let answers = json!({ "/v1/status": status, "/v1/disks": disks, "/v1/agents": agents });
    format!(
        "globalThis.realFetch = fetch; globalThis.fetch = async (path) => new Response(JSON.stringify(({answers})[path]))"
    )
}

fn names_are_never_markup_and_tables_are_bounded(browser: &mut Browser) {
    browser.value(&hostile());
    browser.wait("the hostile names to be shown", "document.querySelector('#disks .name')?.innerText.includes('<img')");
    for selector in
        ["#gateway", "#findings .text", "#f-worst-more", "#f-disks-more", "#agents .name", "#backend", "#disks .state"]
    {
        let text = browser.text(selector);
        assert!(text.contains("<script>window.harmed=1</script>"), "{selector}: {text}");
    }
    let harmed = browser.value("[typeof harmed, document.images.length, document.scripts.length]");
    assert_eq!(harmed, json!(["undefined", 0, 1]));
    assert_eq!(browser.value("document.querySelectorAll('#disks tr').length"), 50);
    assert!(browser.text("#disks-more").contains("950 more"));
    browser.look_as(PHONE, false);
    assert_fits(browser, PHONE, "long names on a phone");
    browser.picture(&pictures().join("hostile-phone.png"));
    browser.look_as(DESKTOP, false);
    browser.picture(&pictures().join("hostile-light.png"));
    browser.value("(() => { const s = document.getElementById('search'); s.value = 'DISK0997'; s.dispatchEvent(new Event('input')); })()");
    assert_eq!(browser.text("#disks tr td"), "disk0997");
    assert_eq!(browser.value("document.querySelectorAll('#disks tr').length"), 1);
    browser.value(
        "(() => { const s = document.getElementById('search'); s.value = ''; s.dispatchEvent(new Event('input')); })()",
    );
    browser.value("document.querySelector('#disk-head button').click()");
    assert_eq!(browser.value("document.querySelector('#disk-head [aria-sort]').ariaSort"), "ascending");
    browser.value("globalThis.fetch = realFetch");
    browser.wait("the gateway's own answers", "document.querySelector('#f-disks').innerText === '2 of 2'");
}

#[test]
fn the_status_page_tells_in_a_browser_what_is_so_and_what_to_do() {
    let _turn = turn();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let vault = Some(sink.vault_url("shown"));
    let mut scene = Scene::new(Setting { vault, ..Setting::default() }, &["mail", "ledger"], empty(DISK_BYTES));
    scene.wait_copied("mail");
    scene.wait_copied("ledger");

    let mut browser = Browser::start();
    browser.look_as(DESKTOP, false);
    let url = format!("http://{}/", scene.site.admin_address());
    browser.open(&url);
    browser.wait("both disks to be shown as protected", "document.querySelector('#f-disks')?.innerText === '2 of 2'");
    browser.wait("the rates to be known", "!document.querySelector('#path').innerText.includes('measuring')");
    browser.wait("all to be well", "document.querySelector('#findings').innerText.startsWith('All well')");
    assert_eq!(browser.text("#state"), "ready");
    assert!(browser.text("#backend").starts_with("journal on "));
    let policy = browser.value("fetch('/status').then((answer) => answer.headers.get('content-security-policy'))");
    assert!(
        policy.as_str().is_some_and(|policy| policy.starts_with("default-src 'none'; script-src 'sha256-")),
        "{policy}"
    );
    take_pictures(&mut browser, "idle", false);

    let load = scene.load("mail", 61, 8);
    scene.write_more(&load, 64 << 20);
    browser.wait(
        "every stage to show what passes",
        "[...document.querySelectorAll('#path .big')].slice(1).every((node) => /[1-9].*iB\\/s/.test(node.innerText))",
    );
    take_pictures(&mut browser, "loaded", false);

    sink.set(Weather { away: true, ..Weather::default() });
    browser.wait(
        "the vault to be named",
        "document.querySelector('#findings').innerText.includes('Nothing reached the vault')",
    );
    browser.wait(
        "the age of what is not vaulted to be shown",
        "parseFloat(document.querySelector('#f-worst').innerText) > 12",
    );
    assert_eq!(browser.text("#path li:last-child .word"), "critical");
    browser.value("document.querySelector('#findings summary').click()");
    browser.wait(
        "the runbook to be quoted",
        "document.querySelector('#findings .book').innerText.includes('tidegate_blob_requests_total')",
    );
    take_pictures(&mut browser, "vault-down", false);
    browser.value("document.querySelector('#findings summary').click()");

    sink.set(Weather::default());
    drop(load);
    browser.wait("all to be well again", "document.querySelector('#findings').innerText.startsWith('All well')");

    names_are_never_markup_and_tables_are_bounded(&mut browser);

    scene.gateway.take().unwrap().kill().unwrap();
    browser.wait("the silence to be told", "!document.querySelector('#stale').hidden && document.querySelector('#stale').innerText.includes('does not answer')");
    assert_eq!(browser.text("#state"), "no answer");
    take_pictures(&mut browser, "no-answer", true);
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    browser.wait(
        "the page to go on by itself",
        "document.querySelector('#stale').hidden && document.querySelector('#state').innerText === 'ready'",
    );
    assert_eq!(browser.complaints, Vec::<String>::new(), "errors of scripts, or something that the policy forbade");
}
