//! Topic names below `<base>/<node>`, and where replies may go.

use wire::names::topic_matches;

/// The topics of one node.
#[derive(Debug, Clone)]
pub struct Topics {
    base: String,
    /// The base that all nodes have in common, with a slash behind it.
    common: String,
    fleet: Option<String>,
    reply_filters: Vec<String>,
    high_priority: Vec<String>,
}

/// The kind of request that a topic carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// A question.
    Ask,
    /// Passages only.
    Search,
    /// Put a document.
    Put,
    /// Delete a document.
    Delete,
    /// List documents.
    List,
    /// Cancel a question.
    Cancel,
    /// A message to ourselves: the message before it has reached the broker. Its topic is called `receipt`.
    Echo,
}

const REQUEST_KINDS: [(&str, RequestKind); 7] = [
    ("ask", RequestKind::Ask),
    ("search", RequestKind::Search),
    ("documents/put", RequestKind::Put),
    ("documents/delete", RequestKind::Delete),
    ("documents/list", RequestKind::List),
    ("cancel", RequestKind::Cancel),
    ("receipt", RequestKind::Echo),
];

impl Topics {
    /// Topics below `base` (`vademecum/<node>`), with the fleet group if the node is in one.
    /// `high_priority` are filters of the reply topics whose questions may go first.
    pub fn new(base: String, prefix: &str, fleet: &str, reply_filters: Vec<String>, high_priority: Vec<String>) -> Self {
        let fleet = (!fleet.is_empty()).then(|| format!("{prefix}/fleet/{fleet}/ask"));
        Self { base, common: format!("{prefix}/"), fleet, reply_filters, high_priority }
    }

    /// `<base>/<name>`.
    pub fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// The reply topic of a request that names none.
    pub fn answer(&self, id: &str) -> String {
        self.of(&format!("answer/{}", topic_level(id)))
    }

    /// Topic filters to subscribe to.
    pub fn subscriptions(&self) -> Vec<String> {
        let shared = self.fleet.iter().filter_map(|topic| {
            let group = topic.rsplit('/').nth(1)?;
            Some(format!("$share/{group}/{topic}"))
        });
        REQUEST_KINDS.iter().map(|(name, _)| self.of(name)).chain(shared).collect()
    }

    /// The kind of request on `topic`.
    pub fn kind(&self, topic: &str) -> Option<RequestKind> {
        if self.fleet.as_deref() == Some(topic) {
            return Some(RequestKind::Ask);
        }
        let name = topic.strip_prefix(self.base.as_str())?.strip_prefix('/')?;
        REQUEST_KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// Whether questions with this reply topic may have high priority.
    pub fn may_go_first(&self, reply_topic: &str) -> bool {
        self.high_priority.iter().any(|filter| topic_matches(filter, reply_topic))
    }

    /// Checks a reply topic that a client chose.
    ///
    /// # Errors
    /// The reason for a refusal.
    pub fn check_reply(&self, topic: &str) -> Result<(), String> {
        if topic.is_empty() || topic.len() > 512 {
            return Err("a reply topic has 1 to 512 bytes".into());
        }
        if topic.contains(['+', '#']) || topic.chars().any(char::is_control) || topic.starts_with('$') {
            return Err("a reply topic has no wildcards, no control characters and does not begin with $".into());
        }
        if topic.strip_prefix(self.base.as_str()).is_some_and(|rest| rest.starts_with("/answer/")) {
            return Ok(());
        }
        // No other topic of ours may be written to: a reply to `ask` would be the next question.
        let own = topic == self.base || topic.strip_prefix(self.base.as_str()).is_some_and(|rest| rest.starts_with('/'));
        if own || self.is_of_another_node(topic) || !self.reply_filters.iter().any(|filter| topic_matches(filter, topic)) {
            return Err(format!(
                "replies may not go to this topic; use {}/answer/<id> or one that mqtt.reply_topics allows ({})",
                self.base,
                self.reply_filters.join(", ")
            ));
        }
        Ok(())
    }

    /// Whether a node or a fleet uses this topic. Our answer there would be a question to it, or look like its own message.
    fn is_of_another_node(&self, topic: &str) -> bool {
        let Some((node, name)) = topic.strip_prefix(self.common.as_str()).and_then(|rest| rest.split_once('/')) else {
            return false;
        };
        let known = REQUEST_KINDS.iter().map(|(name, _)| *name).chain(["state", "info", "metrics"]).any(|known| known == name);
        known || name.starts_with("answer/") || (node == "fleet" && name.ends_with("/ask"))
    }
}

/// `id` as one level of a topic: characters that a topic cannot hold become `_`.
fn topic_level(id: &str) -> String {
    id.chars().map(|c| if matches!(c, '/' | '+' | '#' | '$') || c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("vademecum/pi".into(), "vademecum", "lab", vec!["reply/#".into(), "+/reply".into()], vec![])
    }

    #[test]
    fn the_topic_tells_the_request() {
        let t = topics();
        assert_eq!(t.kind("vademecum/pi/documents/put"), Some(RequestKind::Put));
        assert_eq!(t.kind("vademecum/fleet/lab/ask"), Some(RequestKind::Ask));
        assert_eq!(t.kind("vademecum/pi2/ask"), None);
        assert!(t.subscriptions().contains(&"$share/lab/vademecum/fleet/lab/ask".to_owned()));
        assert_eq!(t.answer("a/b#"), "vademecum/pi/answer/a_b_");
    }

    #[test]
    fn replies_go_only_where_they_may() {
        let t = topics();
        for allowed in ["reply/1", "reply", "reply/a/b", "x/reply", "vademecum/pi/answer/7"] {
            assert!(t.check_reply(allowed).is_ok(), "{allowed}");
        }
        for refused in [
            "",
            "reply/+",
            "reply/#",
            "$SYS/x",
            "home/lamp/set",
            "vademecum/pi/ask",
            "vademecum/pi/state",
            "vademecum/fleet/lab/ask",
            "reply/\0",
        ] {
            assert!(t.check_reply(refused).is_err(), "{refused}");
        }
        let open = Topics::new("v/pi".into(), "v", "lab", vec!["#".into()], vec!["alarm/#".into()]);
        assert!(open.check_reply("anything/goes").is_ok());
        for refused in ["v/pi/ask", "v/pi", "v/fleet/lab/ask"] {
            assert!(open.check_reply(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn no_reply_becomes_a_request() {
        let open = |base: &str, fleet: &str| Topics::new(base.into(), "v", fleet, vec!["#".into(), "+/+/+".into()], vec![]);
        for t in [open("v/pi", "lab"), open("v/fleet", "lab"), open("v/pi", "")] {
            // A loop needs a subscribed topic; shared subscriptions count by their topic.
            for filter in t.subscriptions() {
                let topic = filter.strip_prefix("$share/lab/").unwrap_or(&filter);
                assert!(t.kind(topic).is_some() && t.check_reply(topic).is_err(), "{topic}");
                assert!(t.check_reply(&filter).is_err() || t.kind(&filter).is_none(), "{filter}");
            }
            for own in ["state", "info", "metrics", "receipt", "documents", "documents/list", "answer", "answerx/1", "unknown"] {
                assert!(t.check_reply(&t.of(own)).is_err(), "{own}");
            }
            for name in ["a", "../ask", "/ask", "ask", "receipt"] {
                assert_eq!(t.kind(&t.answer(name)), None, "{name}");
            }
        }
    }

    #[test]
    fn replies_do_not_go_to_other_nodes_requests() {
        // Two nodes that answer each other would make a loop, too.
        let t = Topics::new("v/pi".into(), "v", "lab", vec!["#".into()], vec![]);
        for other in ["v/pi2/ask", "v/pi2/search", "v/pi2/receipt", "v/pi2/documents/put", "v/fleet/barn/ask", "v/pi2/state"] {
            assert!(t.check_reply(other).is_err(), "{other}");
        }
        assert!(t.check_reply("v/pi2/answer/7").is_err(), "the answers of another node are its own");
        assert!(t.check_reply("v2/pi/ask").is_ok() && t.check_reply("vx").is_ok());
    }
}
