//! What a listener wants to find again after a restart, as text: a line a setting.
//!
//! ```text
//! bind 0.0.0.0:8080
//! url https://logs.example.org
//! ```
//!
//! Lines that are not known are skipped, so that a newer release may write more. What is kept is
//! where clients find the member and nothing else: a line that is damaged is left out with a
//! warning, and the start goes on.

use std::net::SocketAddr;

const BIND: &str = "bind";
const URL: &str = "url";

/// What was kept, read; or what is to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where it listened, with the ports it had.
    pub(crate) bind: Vec<SocketAddr>,
    /// How it is called from outside.
    pub(crate) urls: Vec<String>,
}

impl Settings {
    /// What was kept; `is_url` says what is one for the transport.
    pub(crate) fn read(text: Option<&str>, is_url: impl Fn(&str) -> bool) -> Self {
        let mut settings = Self::default();
        for line in text.unwrap_or_default().lines() {
            let sound = match line.split_once(' ') {
                Some((BIND, addr)) => addr.parse().map(|addr| settings.bind.push(addr)).is_ok(),
                Some((URL, url)) if is_url(url) => {
                    settings.urls.push(url.to_owned());
                    true
                }
                Some((URL, _)) => false,
                _ => true,
            };
            if !sound {
                tracing::warn!(
                    line,
                    "a setting that was kept of a transport is damaged and left out: clients may \
                     not find this member where it was; name its address, or its URL, to set it \
                     anew"
                );
            }
        }
        settings
    }

    pub(crate) fn text(&self) -> String {
        let bind = self.bind.iter().map(|it| format!("{BIND} {it}\n"));
        let urls = self.urls.iter().map(|it| format!("{URL} {it}\n"));
        bind.chain(urls).collect()
    }

    /// Where to try to listen, in this order: where the program says; a port that it leaves open is
    /// the one that it was.
    pub(crate) fn places(
        &self,
        wanted: Option<SocketAddr>,
        default: SocketAddr,
    ) -> Vec<SocketAddr> {
        let open = |addr: SocketAddr| addr.port() == 0;
        match (wanted, self.bind.first().copied()) {
            (Some(wanted), _) if !open(wanted) => vec![wanted],
            (Some(wanted), Some(kept)) if wanted.ip() == kept.ip() => vec![kept, wanted],
            (Some(wanted), _) => vec![wanted],
            (None, Some(kept)) => vec![kept, (kept.ip(), 0).into()],
            (None, None) => vec![default],
        }
    }

    /// The same for several addresses at once, of which none is a default: what is wanted with the
    /// ports that were kept, where it leaves them open; nothing if nothing was kept for it.
    pub(crate) fn at_former_ports(&self, wanted: &[SocketAddr]) -> Option<Vec<SocketAddr>> {
        if wanted.is_empty() {
            return (!self.bind.is_empty()).then(|| self.bind.clone());
        }
        let former = |wanted: &SocketAddr| {
            let kept = self.bind.iter().find(|it| it.ip() == wanted.ip());
            *kept.filter(|_| wanted.port() == 0).unwrap_or(wanted)
        };
        let former: Vec<SocketAddr> = wanted.iter().map(former).collect();
        (former != wanted).then_some(former)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_is_kept_is_read_again_and_what_is_unknown_is_skipped() {
        let kept = Settings {
            bind: vec![addr("[::]:8080"), addr("0.0.0.0:8080")],
            urls: vec!["https://a.example/b c".into(), "http://b.example".into()],
        };
        let text = format!("{}later 1\n\nbind\n", kept.text());
        assert_eq!(Settings::read(Some(&text), |_| true), kept);
        assert_eq!(Settings::read(None, |_| true), Settings::default());
    }

    #[test]
    fn what_is_damaged_is_left_out_and_the_rest_is_read() {
        let text = "bind 0.0.0.0:808080\nurl nonsense\nbind [::]:80\nurl http://a.example\nurl \n";
        let kept = Settings {
            bind: vec![addr("[::]:80")],
            urls: vec!["http://a.example".into()],
        };
        assert_eq!(Settings::read(Some(text), |it| it.contains(':')), kept);
    }

    #[test]
    fn what_a_start_leaves_open_is_as_it_was() {
        let default = addr("0.0.0.0:0");
        let kept = Settings {
            bind: vec![addr("127.0.0.1:81")],
            urls: Vec::new(),
        };
        let places = |wanted: Option<&str>| kept.places(wanted.map(addr), default);
        assert_eq!(places(Some("127.0.0.1:80")), [addr("127.0.0.1:80")]);
        let again = [addr("127.0.0.1:81"), addr("127.0.0.1:0")];
        assert_eq!(places(Some("127.0.0.1:0")), again);
        assert_eq!(places(None), again);
        assert_eq!(places(Some("0.0.0.0:0")), [default]);
        assert_eq!(Settings::default().places(None, default), [default]);
        let former = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|it| addr(it)).collect();
            kept.at_former_ports(&wanted)
        };
        assert_eq!(former(&[]), Some(vec![addr("127.0.0.1:81")]));
        let both = vec![addr("127.0.0.1:81"), addr("[::1]:0")];
        assert_eq!(former(&["127.0.0.1:0", "[::1]:0"]), Some(both));
        assert_eq!(former(&["127.0.0.1:80"]), None);
        assert_eq!(Settings::default().at_former_ports(&[]), None);
    }
}
