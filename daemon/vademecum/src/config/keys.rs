//! Every key of the configuration, once.
//!
//! To add a key: write its row here, use the field where it is needed, and run `make config-files`, which writes
//! `config/vademecum.toml` and `docs/configuration.md` anew. Everything else follows from the row: the typed field, its default,
//! parsing, checks, `vademecum config`, the documentation, and whether a reload takes the key over.
//!
//! The first line of a row's comment is its help; further lines, behind an empty one, are its explanation.

use super::checks;
use super::table::Bounds::{Number, OneOf, Whole};
use super::table::{ConfigKey, PLAIN, table};
use answer::Strategy;
use llm::engine::{Lookup, Repack};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use wire::names::MAX_TOP_K;

table! {
    Config {
        /// Name of this node, the second part of every topic. Empty: the host name.
        node: String = "", flag: "--node", check: |c| checks::topic_level(&c.node_name());

        /// Directory of documents, vectors, copies of the sources, and the control socket.
        ///
        /// Empty: `$STATE_DIRECTORY` under systemd, `/var/lib/vademecum` for root, else `$XDG_DATA_HOME/vademecum` or
        /// `~/.local/share/vademecum`.
        data_dir: PathBuf = "", flag: "--data-dir";

        /// Collection of questions and documents that name none.
        collection: String = "default", flag: "--collection", check: |c| checks::collection(&c.collection);
    }

    Mqtt [mqtt] "The connection to the broker." {
        /// Address of the broker. Empty: the embedded broker.
        ///
        /// The forms are `mqtt://host:port`, `mqtts://host:port`, `ws://host:port/path` and `wss://host:port/path`.
        broker: String = "", flag: "--broker", check: checks::broker;

        /// First part of every topic: `<base>/<node>/ask` and so on.
        base: String = "vademecum", check: |c| c.mqtt.base.split('/').try_for_each(checks::topic_level);

        /// Version of MQTT.
        version: String = "auto",
            bounds: OneOf(&[("auto", "5, or 3.1.1 when the broker refuses 5"), ("5", "5 only"), ("3.1.1", "3.1.1 only")]);

        /// Client id at the broker. Empty: `vademecum-<node>`.
        client_id: String = "";

        /// User name at the broker. Empty: systemd's credential `mqtt-username`, else none.
        ///
        /// `LoadCredential=` gives a credential, and systemd puts it into `$CREDENTIALS_DIRECTORY`.
        username: String = "", live: true;

        /// File whose first line is the password. Empty: systemd's credential `mqtt-password`, else none.
        password_file: PathBuf = "", live: true;

        /// PEM file of the authorities that `mqtts://` and `wss://` trust. Empty: the system's.
        ca_file: PathBuf = "", check: |c| checks::needs_tls(c, !c.mqtt.ca_file.as_os_str().is_empty());

        /// PEM file of our certificate, for brokers that want one. Empty: none.
        ///
        /// Intermediate certificates follow it in the same file.
        cert_file: PathBuf = "", check: checks::certificate;

        /// PEM file of the certificate's private key, not encrypted.
        key_file: PathBuf = "", check: checks::private_key;

        /// Protocols offered by ALPN, such as `mqtt`, to a port that serves several. Empty: none.
        alpn: Vec<String> = [], check: checks::alpn;

        /// Longest silence before a sign of life is sent to the broker (keep-alive).
        keep_alive_s: u64 = 30, unit: "seconds", bounds: Whole(5..=65_535);

        /// Largest payload accepted; also the largest document put over MQTT.
        ///
        /// The embedded broker takes packets of up to 8 MiB, whatever this key says.
        max_payload_bytes: usize = 1024 * 1024, unit: "bytes", bounds: Whole(1024..=64 << 30), check: checks::max_payload;

        /// Topic filters of the places where replies may go, besides `<base>/<node>/answer/<id>`.
        ///
        /// They bound the response topic and `reply_to`. A request that names another place is answered with an error on
        /// `answer/<id>`.
        reply_topics: Vec<String> = ["reply/#", "+/reply/#", "response/#", "+/response/#"],
            check: |c| checks::topic_filters(&c.mqtt.reply_topics);

        /// Whether questions and answers at QoS 1 and 2 survive a crash or a restart.
        ///
        /// A question is acknowledged to the broker only when it stands in `<data_dir>/mail`. After a restart it is answered,
        /// unless its deadline has passed. Its answer is sent until the broker acknowledges it. `false` saves writes.
        durable: bool = true;

        /// Topic filters of reply topics whose questions may say `"priority": "high"` and go before all others.
        high_priority: Vec<String> = [], check: |c| checks::topic_filters(&c.mqtt.high_priority);

        /// Whether documents may be put and deleted over MQTT. The control socket in `data_dir` always takes them.
        ///
        /// `true` lets everybody who may publish below `<base>/<node>` change the answers. A broker with rules tells
        /// clients apart; `config/mosquitto/acl` is a sample.
        documents: bool = false, live: true;

        /// Fleet group of this node. Empty: none.
        ///
        /// The node then also takes questions from `$share/<fleet>/<base>/fleet/<fleet>/ask`.
        fleet: String = "", check: |c| if c.mqtt.fleet.is_empty() { Ok(()) } else { checks::topic_level(&c.mqtt.fleet) };
    }

    EmbeddedBroker [broker] "The embedded broker, used when `mqtt.broker` is empty." {
        /// Address and port, loopback only.
        ///
        /// The embedded broker has no accounts and no TLS, and it keeps everything in memory.
        listen: String = "127.0.0.1:1883", check: checks::listen;
    }

    Model [model] "The generator." {
        /// GGUF file of the generator. Empty: the first `generator.gguf` in the usual places.
        ///
        /// The places are `$VADEMECUM_MODELS`, `<data_dir>/models`, `/usr/share/vademecum/models` and the model cache
        /// (`$VADEMECUM_CACHE/models`, else `~/.cache/vademecum/models`). `vademecum model pull` fetches models, and
        /// `vademecum model use` sets this key.
        generator: PathBuf = "", flag: "--generator";

        /// Context, prompt and answer together; never more than the model was trained for.
        ///
        /// Memory grows with it: `vademecum model show` tells the bytes per token.
        context: u32 = 2048, unit: "tokens", bounds: Whole(512..=131_072);

        /// Threads that decode. 0: as `vademecum tune` measured, else one for each core this process may use.
        threads: usize = 0, unit: "threads", bounds: Whole(0..=512);

        /// Threads that read prompts. 0: chosen in the same way.
        batch_threads: usize = 0, unit: "threads", bounds: Whole(0..=512);

        /// Whether weights are copied into memory in an order that is faster to compute with.
        ///
        /// Prompts are read 1.4 times as fast with some 4-bit weights (`Q4_0`, `Q4_K`). The copy takes memory of its own, while
        /// the pages of the file can be dropped and read again: 626 MB for a model of 1.5 billion weights. `vademecum doctor`
        /// tells the figure.
        repack: Repack = Repack::Auto, bounds: OneOf(&[
            ("auto", "if there is memory to spare"),
            ("on", "always"),
            ("off", "never: every page of the weights is a page of the file"),
        ]);

        /// Whether the weights stay in memory even when others need it.
        ///
        /// The limit on locked memory (`ulimit -l`) must allow it.
        mlock: bool = false;

        /// Layers of the generator on a graphics processor: `auto`, or a number up to 1000. 0: none.
        ///
        /// `auto` takes as many as the free memory of the device holds. Only programs built with the feature `cuda` or `vulkan`
        /// use a device. Without a device the processor computes, and the log says so.
        n_gpu_layers: String = "auto", check: checks::gpu_layers;

        /// Whether the next tokens of an answer are guessed from the passages, and several verified in one pass.
        ///
        /// Answers quote, so many guesses are right. The text is the same but for near ties, which rounding decides. Sampled
        /// answers are never guessed, nor those of models with a running state or a sliding window. `info` tells the outcome and
        /// why.
        lookup: Lookup = Lookup::Auto, bounds: OneOf(&[
            ("auto", "if `vademecum tune`, or the daemon on a quiet machine, has measured a gain"),
            ("on", "always"),
            ("off", "never"),
        ]);

        /// Questions at work at once. They share the context, and wait for each other if it is too small.
        slots: usize = 4, unit: "questions", bounds: Whole(1..=16);

        /// Disk for the kv cache of sections. 0: none.
        ///
        /// The next question about a passage is answered sooner. The answer is the same but for near ties, which rounding
        /// decides. The files are in `$CACHE_DIRECTORY/kv-cache` under systemd, else in `<data_dir>/kv-cache`.
        kv_cache_mb: u64 = 512, unit: "MB", bounds: Whole(0..=1 << 20), formerly: "model.passages_mb";

        /// Disk that the kv cache leaves free.
        kv_cache_min_free_mb: u64 = 256, unit: "MB", bounds: Whole(0..=1 << 20), formerly: "model.passages_min_free_mb";

        /// Whether the kv cache of every section is computed while there is nothing else to do.
        ///
        /// The work begins after documents came in and after a start, and ends when `model.kv_cache_mb` is full. A question that
        /// comes meanwhile waits for 64 tokens at most. The strategy `read` uses it. `metrics` shows the progress.
        precompute: bool = false;
    }

    Embedder [embedder] "The encoder that turns text into vectors." {
        /// GGUF file of the encoder. Empty: the first `embedder.gguf` in the places of `model.generator`.
        ///
        /// `vademecum model convert` makes one.
        path: PathBuf = "", flag: "--embedder";

        /// Hugging Face `tokenizer.json`. Empty: the one inside the GGUF file, or beside it.
        tokenizer: PathBuf = "";

        /// Threads. 0: chosen by the cores this process may use.
        threads: usize = 0, unit: "threads", bounds: Whole(0..=512);

        /// Tokens in one forward pass.
        batch_tokens: usize = 256, unit: "tokens", bounds: Whole(64..=8192);
    }

    Answer [answer] "How questions are answered." {
        /// Passages retrieved for a question.
        top_k: usize = 3, unit: "passages", bounds: Whole(1..=MAX_TOP_K as i64), live: true;

        /// How an answer is made from the passages.
        strategy: Strategy = Strategy::Auto, formerly: "answer.reader", bounds: OneOf(&[
            ("auto", "as the model's prompt file says. Models of less than 400 million weights: `quote`. Others: procedures and \
                      explanations in the manual's own words, yes or no before them, and values as a few words that the model \
                      takes from them"),
            ("quote", "no model: the best sentences are the answer, word for word"),
            ("read", "the model reads the best section and what stands beside it, as far as `answer.patience_ms` allows, and writes \
                      every answer"),
            ("evidence", "the same as `read` now"),
            ("best", "the same as `read` now"),
            ("each", "the same as `read` now"),
            ("joined", "the same as `read` now"),
        ]);

        /// Time for reading, before the first word of an answer.
        ///
        /// The generator reads as much of the best section as it can in this time, at its measured speed, and at least the best
        /// sentences. A text whose kv cache is kept costs no time. A section that had to wait is read afterwards, while there is
        /// nothing else to do.
        patience_ms: u64 = 3000, unit: "milliseconds", bounds: Whole(0..=86_400_000);

        /// Whether sentences of the model that the passages do not support are held back.
        ///
        /// An answer then goes out sentence by sentence. If nothing is left of it, the passages are quoted. `false`: the model's
        /// words go out as they come, true or not.
        check: bool = true;

        /// Folder with prompt files of your own (`*.toml`), which go before the built-in ones. Empty: none.
        ///
        /// docs/models.md describes them.
        prompts: PathBuf = "";

        /// Sentences that `quote` gives, and that are read at least.
        ///
        /// Small models answer better from few, and the first token comes sooner.
        sentences: usize = 2, unit: "sentences", bounds: Whole(1..=100);

        /// Answers kept in memory. 0: none.
        ///
        /// The same question over an unchanged library gets the same answer at once, with `cached: true`. Capitals that begin
        /// words, spacing and the question mark make no difference.
        cache: usize = 0, unit: "answers", bounds: Whole(0..=100_000);

        /// Longest answer. A request may ask for more, up to half the context.
        max_tokens: usize = 256, unit: "tokens", bounds: Whole(1..=4096), live: true, check: checks::max_tokens;

        /// Confidence below which the answer is `found: false`.
        ///
        /// `vademecum calibrate` fits the confidence to your library, and shows the answers that a threshold keeps and refuses.
        threshold: f32 = 0.5, bounds: Number(0.0..=1.0);

        /// Text of an answer with `found: false`. Empty: fixed words in the question's language.
        not_found: String = "";

        /// System prompt. Empty: the one of the prompt file.
        system: String = "";

        /// Strings that end an answer, besides the model's own end-of-generation tokens.
        stop: Vec<String> = [];

        /// Temperature of sampling. 0: greedy, the likeliest token each time.
        ///
        /// Rounding depends on the threads and on the load, so the words of a greedy answer may still differ. Requests may set
        /// `temperature`, `top_p`, `min_p` and `seed` of their own.
        temperature: f32 = 0.0, bounds: Number(0.0..=5.0), live: true;

        /// Sampling takes the fewest tokens that together have this probability. Temperature 0 ignores it.
        top_p: f32 = 0.95, bounds: Number(0.0..=1.0), live: true;

        /// Sampling drops tokens with less than this share of the likeliest one's probability. Temperature 0 ignores it.
        min_p: f32 = 0.05, bounds: Number(0.0..=1.0), live: true;

        /// Random seed of sampling. Temperature 0 ignores it.
        seed: u32 = 0, bounds: Whole(0..=u32::MAX as i64), live: true;

        /// Deadline of questions that bring none.
        deadline_ms: u64 = 120_000, unit: "milliseconds", bounds: Whole(100..=86_400_000), live: true;

        /// Questions that may wait; one more is answered `queue_full`.
        ///
        /// That answer tells when to ask again. The questions of one reply topic take at most three quarters of the places, and
        /// an equal share when others wait.
        queue: usize = 16, unit: "questions", bounds: Whole(1..=4096), live: true;

        /// Longest question.
        max_question_bytes: usize = 4096, unit: "bytes", bounds: Whole(16..=65_536), live: true;
    }

    Ingest [ingest] "How documents are read." {
        /// Length of a chunk in tokens of the embedder, heading path included.
        chunk_tokens: usize = 176, unit: "tokens", bounds: Whole(32..=2048);

        /// Globs of the files to read in folders. Empty: every readable kind.
        ///
        /// A glob without `/` matches names at any depth, one with `/` the path below the folder. Readable are `.md`, `.html`,
        /// `.txt`, `.rst`, `.adoc`, `.pdf`, `.epub`, `.docx`, `.xlsx`, `.pptx`, `.odt`, `.csv` and the like. Convert manual pages
        /// (`mandoc -T html`) and DocBook (`xmlto html-nochunks`) to HTML first.
        include: Vec<String> = [], live: true, check: |c| checks::globs(&c.ingest.include);

        /// Globs of the files to leave out.
        exclude: Vec<String> = [], live: true, check: |c| checks::globs(&c.ingest.exclude);

        /// Largest document.
        max_document_bytes: u64 = 32 * 1024 * 1024, unit: "bytes", bounds: Whole(1024..=1 << 30);

        /// Folders that the library follows: `/path`, or `collection=/path`.
        ///
        /// New, changed, removed and renamed files are taken over within seconds, with the globs above. `vademecum documents
        /// list` shows the state of each file. Links to files are followed inside the folder only.
        watch: Vec<String> = [], live: true, check: |c| c.watched_folders().map(drop);
    }

    Store [store] "The database." {
        /// Page cache of sled.
        cache_bytes: u64 = 16 * 1024 * 1024, unit: "bytes", bounds: Whole(1 << 20..=1 << 32);
    }

    Service [service] "Start and stop." {
        /// Time that the questions at work get to finish after SIGTERM.
        shutdown_grace_s: u64 = 10, unit: "seconds", bounds: Whole(0..=600), live: true;

        /// Time between two `metrics` messages. 0: none.
        metrics_every_s: u64 = 60, unit: "seconds", bounds: Whole(0..=86_400), live: true;
    }

    Log [log] "The log." {
        /// Least important messages that are logged: `error`, `warn`, `info`, `debug` or `trace`.
        ///
        /// The flags `-v` and `-vv` ask for `debug` and `trace`.
        level: String = "info", live: true, check: checks::log_level;
    }
}
