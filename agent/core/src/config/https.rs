//! `[https]`: the decision point for other hosts, and who may call.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::fault::Fault;
use super::model::{Https, HttpsCaller};
use super::section::Section;
use super::value::{file, name, text};

const KEYS: [&str; 7] = ["listen", "certificate", "key", "client-ca", "tokens", "origin", "callers"];
const CALLER_KEYS: [&str; 2] = ["account", "certificate"];

/// Reads it, if it is there.
pub(super) fn read_https(section: &mut Section<'_, '_>) -> Option<Https> {
    let span = section.span("https")?;
    let mut own = section.section("https", &KEYS)?;
    let listen = own.parsed("listen", listener);
    let (certificate, key) = (own.parsed("certificate", file), own.parsed("key", file));
    let (client_ca, tokens) = (own.parsed("client-ca", file), own.parsed("tokens", file));
    let origin = own.parsed("origin", origin);
    for (key, example) in [
        ("listen", "\"127.0.0.1:8443\""),
        ("certificate", "\"/etc/writ/tls/server.pem\""),
        ("key", "\"/etc/writ/tls/server.key\""),
    ] {
        if own.value(key).is_none() {
            let fault = Fault::new("missing-key", format!("`[https]` has no `{key}`"));
            own.refuse(span.clone(), fault.help(format!("write e.g. {key} = {example}")));
        }
    }
    if client_ca.is_none() && tokens.is_none() {
        let fault = Fault::new("missing-key", "`[https]` has neither `client-ca` nor `tokens`: nobody could call");
        own.refuse(span, fault.help("write e.g. tokens = \"/etc/writ/tokens\""));
    }
    let callers = read_callers(&mut own);
    let (listen, certificate, key) = (listen?, certificate?, key?);
    let origin = origin.unwrap_or_else(|| format!("https://{listen}"));
    Some(Https { listen, certificate, key, client_ca, tokens, origin, callers })
}

fn read_callers(section: &mut Section<'_, '_>) -> BTreeMap<String, HttpsCaller> {
    let mut callers = BTreeMap::new();
    let Some(table) = section.value("callers").and_then(|value| section.table_of("callers", value)) else {
        return callers;
    };
    let mut all = section.below(table, "`[https.callers]`".to_owned());
    for (key, value) in table {
        let caller = key.get_ref().to_string();
        let Some(table) = all.table_of(&caller, value) else { continue };
        let mut own = all.below(table, format!("`[https.callers.{caller}]`"));
        own.know(&CALLER_KEYS);
        let (account, certificate) = (own.parsed("account", name), own.parsed("certificate", text));
        match account {
            Some(account) => drop(callers.insert(caller, HttpsCaller { account, certificate })),
            None if own.value("account").is_none() => {
                let fault = Fault::new("missing-key", format!("`[https.callers.{caller}]` has no `account`"));
                own.refuse(value.span(), fault.help("name the service account it asks as"));
            }
            None => {}
        }
    }
    callers
}

fn listener(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        Fault::new("bad-listen", format!("`{text}` is not an address and a port"))
            .help("write e.g. \"127.0.0.1:8443\" or \"[::1]:8443\"; loopback is for a proxy on this host")
    })
}

fn origin(text: &str) -> Result<String, Fault> {
    let host = text.strip_prefix("https://").unwrap_or_default();
    if host.is_empty() || host.contains(['/', '?', '#', '@']) || host.contains(char::is_whitespace) {
        return Err(Fault::new("bad-origin", format!("`{text}` is not an origin"))
            .help("write `https://`, the host and, if it is not 443, the port"));
    }
    Ok(text.to_owned())
}
