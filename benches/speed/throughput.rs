//! One client, and four that ask at once.

use crate::contenders::{Contender, SERVER, SLOTS, Site};
use crate::set::Set;
use std::time::Instant;
use vademecum_benches::Result;
use vademecum_benches::client::{Asker, Question};
use vademecum_benches::progress::Stage;

/// Questions and tokens per second of each round.
#[derive(Debug)]
pub(crate) struct Throughput {
    pub(crate) contender: Contender,
    pub(crate) clients: usize,
    pub(crate) questions_per_s: Vec<f64>,
    pub(crate) tokens_per_s: Vec<f64>,
}

/// Every program with one client and with as many as it has slots, in turn, round after round.
pub(crate) fn measure(site: &Site, set: &Set, contenders: &[Contender], quick: bool) -> Result<Vec<Throughput>> {
    let several = [Contender::Ours("read"), SERVER];
    let contenders: Vec<Contender> = several.into_iter().filter(|contender| contenders.contains(contender)).collect();
    let (rounds, each) = if quick { (1, 1) } else { (2, 2) };
    let stage = Stage::begin("throughput");
    let running = contenders.iter().map(|contender| Ok(site.start(*contender)?.0)).collect::<Result<Vec<_>>>()?;
    // Whoever keeps passages has then seen all, whichever number of clients comes first.
    for contender in &contenders {
        at_once(site, *contender, vec![questions(set, "In a few words, please.").collect()], 1)?;
    }
    let mut measured: Vec<Throughput> = Vec::new();
    for round in 0..rounds {
        stage.step(round, rounds);
        for contender in &contenders {
            for clients in [1, SLOTS] {
                // As many questions of one client as of all, each in words of its own.
                let before = format!("Question {}.", 2 * round + usize::from(clients > 1) + 1);
                let mut questions = questions(set, &before).cycle().take(SLOTS * each);
                let texts = (0..clients).map(|_| questions.by_ref().take(SLOTS * each / clients).collect()).collect();
                let (asked, tokens, seconds) = at_once(site, *contender, texts, site.max_tokens)?;
                let place = measured.iter().position(|t| t.contender == *contender && t.clients == clients);
                let place = place.unwrap_or_else(|| {
                    let (questions_per_s, tokens_per_s) = (vec![], vec![]);
                    measured.push(Throughput { contender: *contender, clients, questions_per_s, tokens_per_s });
                    measured.len() - 1
                });
                measured[place].questions_per_s.push(asked as f64 / seconds);
                measured[place].tokens_per_s.push(tokens / seconds);
            }
        }
    }
    for program in running {
        program.stop()?;
    }
    Ok(measured)
}

/// The first question of every pair, with something before it.
fn questions<'a>(set: &'a Set, before: &'a str) -> impl Iterator<Item = String> + Clone + 'a {
    set.pairs.iter().map(move |pair| format!("{before} {}", pair.first.text))
}

/// One thread for each client; questions and tokens answered, and the seconds until the last one was.
fn at_once(site: &Site, contender: Contender, texts: Vec<Vec<String>>, max_tokens: usize) -> Result<(usize, f64, f64)> {
    let node = contender.node();
    let connected =
        texts.into_iter().enumerate().map(|(i, texts)| Ok((Asker::connect(site.port, &format!("{node}-{i}"), &node)?, texts)));
    let clients = connected.collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let all: Vec<std::result::Result<Vec<f64>, String>> = std::thread::scope(|scope| {
        let ask = |(mut asker, texts): (Asker, Vec<String>)| {
            let one = |text: &String| {
                let asked =
                    asker.ask(Question { max_tokens, ..site.question(text) }, &|| Ok(0.0)).map_err(|error| error.to_string())?;
                Ok(asked.answer["usage"]["answer_tokens"].as_f64().unwrap_or(0.0))
            };
            texts.iter().map(one).collect()
        };
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || ask(client))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a client has panicked".into()))).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let tokens: Vec<f64> = all.into_iter().collect::<std::result::Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    Ok((tokens.len(), tokens.iter().sum(), seconds))
}
