//! The status page in a real browser, on a real site: what a person sees of it, hears of it through the keyboard, and can rely on.
//!
//! `QUORATE_PICTURES=FOLDER` keeps pictures of all that is looked at.

use std::path::PathBuf;

use rustix::process::Signal;

use super::{
    browser::Browser,
    site::{Plan, Site, until},
};

/// Every text that is shown and has less than 4.5 : 1 against what lies behind it (WCAG 2.2, 1.4.3).
const TOO_FAINT: &str = r#"(() => {
  const parse = c => { const [r, g, b, a = 1] = c.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
  const over = (t, b) => ({ r: t.r * t.a + b.r * (1 - t.a), g: t.g * t.a + b.g * (1 - t.a), b: t.b * t.a + b.b * (1 - t.a), a: 1 });
  const light = c => { const f = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(c.r) + 0.7152 * f(c.g) + 0.0722 * f(c.b); };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = e => { const layers = []; for (let n = e; n; n = n.parentElement) layers.push(parse(getComputedStyle(n).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), { r: 255, g: 255, b: 255, a: 1 }); };
  const faint = [], seen = { texts: 0 };
  const check = (e, style, text) => { seen.texts += 1;
    if (style.opacity !== "1") faint.push(`${text}: opacity ${style.opacity}`);
    const c = contrast(over(parse(style.color), behind(e)), behind(e));
    if (c < 4.5) faint.push(`${text}: ${c.toFixed(2)}`); };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walk.nextNode());) { const e = n.parentElement;
    if (n.data.trim() && e.checkVisibility({ visibilityProperty: true })) check(e, getComputedStyle(e), n.data.trim()); }
  for (const e of document.querySelectorAll("td")) { const style = getComputedStyle(e, "::before");
    if (style.content !== "none" && e.checkVisibility()) check(e, style, style.content); }
  return { faint, texts: seen.texts };
})()"#;

/// What can be focused, in the order of the document, by number.
const STOPS: &str = r#"(() => { const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
  .filter(e => e.tabIndex >= 0 && e.checkVisibility({ visibilityProperty: true }));
  all.forEach((e, n) => { e.dataset.stop = n; }); return all.length; })()"#;

/// Which of them has the focus, and whether that is seen: an outline, inside the window.
const FOCUSED: &str = r#"(() => { const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
  const outlined = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2 && s.outlineColor !== "rgba(0, 0, 0, 0)";
  const inside = r.right > 0 && r.left < innerWidth && r.bottom > 0 && r.top < innerHeight;
  return [Number(e.dataset.stop ?? -1), outlined && inside, e.outerHTML.slice(0, 90)]; })()"#;

/// How far the page, and each of its tables, would have to be scrolled sideways.
const SIDEWAYS: &str = r#"[document.documentElement, ...document.querySelectorAll(".scroll")]
  .filter(e => e.scrollWidth > e.clientWidth).map(e => `${e.className || e.tagName}: ${e.scrollWidth} in ${e.clientWidth}`)"#;

/// Notes each text of the owner's heading while the page does not say that it knows no more.
const WATCH: &str = r#"(() => { window.owners = []; const own = document.getElementById("owner");
  new MutationObserver(() => window.owners.push(own.textContent)).observe(own, { childList: true, characterData: true, subtree: true });
  window.here = "the same document"; return true; })()"#;

/// A look at the page as it is now: light and dark, wide and on a phone.
fn look(browser: &mut Browser, what: &str) {
    let pictures = std::env::var_os("QUORATE_PICTURES").map(PathBuf::from);
    for (width, height) in [(1100, 900), (360, 740)] {
        browser.size(width, height);
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            let told = browser.eval(TOO_FAINT);
            assert!(
                told["texts"].as_u64().is_some_and(|n| n > 40),
                "{what}: hardly any text is seen: {told}"
            );
            assert_eq!(told["faint"], serde_json::json!([]), "{what}, {scheme}, {width} pixels wide");
            if let Some(folder) = &pictures {
                browser.picture(&folder.join(format!("{what}-{scheme}-{width}.png")));
            }
        }
        let sideways = browser.eval(SIDEWAYS);
        assert!(width > 400 || sideways == serde_json::json!([]), "{what}, {width} pixels wide: {sideways}");
    }
    browser.size(1100, 900);
    browser.scheme("light");
}

fn shows_owner(browser: &mut Browser, name: &str) {
    let js = format!(
        "document.getElementById('owner').innerText === '{name}' && document.getElementById('fresh').innerText === 'live' \
         && document.title.startsWith('{name}')"
    );
    browser.shows(&format!("the page to show {name}, live"), &js);
}

#[test]
fn the_page_tells_live_who_owns_and_never_shows_a_stale_owner() {
    let Some(mut browser) = Browser::start() else { return };
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let (seen, other) = ((owner + 1) % 3, (owner + 2) % 3);
    let names: Vec<String> = site.devices.iter().map(|d| d.id.clone()).collect();
    let host = format!("http://{}/", site.devices[seen].http);
    browser.go(&host);
    shows_owner(&mut browser, &names[owner]);
    browser.eval(WATCH);
    look(&mut browser, "normal");

    // A planned handover, and a loss, without a reload.
    site.reports(seen, "all to be fit", |r| r.members.iter().all(|m| m.fit));
    let asked = site.ask(seen, &["transfer", "--to", &names[other], "--reason", "disk swap"]);
    assert!(asked.status.success(), "{asked:?}");
    shows_owner(&mut browser, &names[other]);
    browser.shows("the reason", "document.getElementById('history').innerText.includes('disk swap')");
    let (_, after) = site.owner(epoch);
    site.signal(other, Signal::KILL);
    site.left(other);
    let (third, third_epoch) = site.owner_among(&[owner, seen], after);
    shows_owner(&mut browser, &names[third]);
    browser.shows(
        "what the loss means",
        "document.getElementById('conditions').innerText.includes('member.silent')",
    );
    look(&mut browser, "conditions");

    // The other one goes too: nobody may own, and the page does not go on naming anybody.
    site.signal(owner, Signal::KILL);
    site.left(owner);
    browser.shows(
        "no owner",
        "['unknown', 'nobody'].includes(document.getElementById('owner').innerText) \
         && document.getElementById('conditions').innerText.includes('quorum.lost')",
    );
    look(&mut browser, "no-owner");
    site.start(owner);
    site.up(owner);
    let (now_owner, last_epoch) = site.owner_among(&[owner, seen], third_epoch.min(after));
    shows_owner(&mut browser, &names[now_owner]);

    // Frozen, the sidecar still accepts connections: its page says within seconds that it hears nothing.
    site.freeze(seen);
    browser.shows("a frozen sidecar to be noticed", "!document.getElementById('gone').hidden");
    assert_eq!(browser.text("owner"), "unknown");
    site.signal(seen, Signal::CONT);
    browser.shows("the page to go on", "document.getElementById('gone').hidden");

    // Dead, it is said loudly; whatever else stands there is not shown as what is.
    browser.eval("window.owners.length = 0");
    site.signal(seen, Signal::KILL);
    site.left(seen);
    browser.shows("a dead sidecar to be noticed", "!document.getElementById('gone').hidden");
    assert_eq!(browser.text("owner"), "unknown");
    assert!(browser.eval("document.title").as_str().is_some_and(|t| t.starts_with("unknown")));
    assert!(browser.text("gone").contains("does not answer"), "{}", browser.text("gone"));
    let last = browser.eval("window.owners.at(-1)");
    assert_eq!(last, "unknown");
    look(&mut browser, "dead");
    let coloured = browser.eval("document.querySelectorAll('main.stale').length");
    assert_eq!(coloured, 1, "what stands there is shown as old");

    // It comes back by itself, in the same document.
    site.start(seen);
    site.up(seen);
    let (back, _) = site.owner_among(&[owner, seen], last_epoch - 1);
    shows_owner(&mut browser, &names[back]);
    assert_eq!(browser.eval("window.here"), "the same document");
    let elsewhere: Vec<&String> = browser.requests.iter().filter(|url| !url.starts_with(&host)).collect();
    assert!(elsewhere.is_empty() && browser.requests.len() > 10, "asked elsewhere: {elsewhere:?}");
    assert_eq!(browser.complaints, Vec::<String>::new());
    site.runs_without_overlap();
}

#[test]
fn the_page_is_used_without_a_mouse() {
    let Some(mut browser) = Browser::start() else { return };
    let (site, owner, _) = Site::running(Plan::default());
    browser.size(1100, 900);
    browser.go(&format!("http://{}/", site.devices[owner].http));
    shows_owner(&mut browser, &site.devices[owner].id.clone());
    let stops = browser.eval(STOPS).as_u64().expect("a number");
    assert!(stops >= 6, "{stops}");
    for stop in 0..stops {
        browser.press("Tab");
        let focused = until("the focus to move", || {
            let focused = browser.eval(FOCUSED);
            (focused[0] == stop).then_some(focused)
        });
        assert_eq!(focused[1], true, "the focus is not seen: {focused}");
    }
    // The first stop leads past everything, and buttons are pressed with Enter.
    browser.eval("document.activeElement.blur(); document.querySelector('.skip').focus()");
    browser.press("Enter");
    browser.shows("the link to lead on", "document.activeElement.id === 'main'");
    browser.eval("document.querySelector('#windows button:last-child').focus()");
    browser.press("Enter");
    browser
        .shows("the button to be pressed", "document.activeElement.getAttribute('aria-pressed') === 'true'");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[test]
fn a_standbys_page_says_that_the_workload_does_not_work_on_the_owner() {
    let Some(mut browser) = Browser::start() else { return };
    let command = serde_json::json!(["/bin/sh", "-c", "exit 3"]).to_string();
    let (site, owner, _) = Site::running(Plan { command: Some(command), ..Plan::default() });
    let (seen, name) = ((owner + 1) % 3, site.devices[owner].id.clone());
    browser.go(&format!("http://{}/", site.devices[seen].http));
    let tells = format!(
        "document.getElementById('wrong').innerText.includes('workload.crashing') \
         && document.getElementById('owner').className === 'critical' \
         && document.getElementById('tiles').innerText.includes('workload on {name}') \
         && document.getElementById('conditions').innerText.includes('workload.crashing on {name}') \
         && document.getElementById('notes').innerText.includes('its workload does not work now')"
    );
    browser.shows("the owner's trouble", &tells);
    look(&mut browser, "not-working");
}
