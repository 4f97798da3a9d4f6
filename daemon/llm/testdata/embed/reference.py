"""Makes sentences.json (text, token ids) and vectors.f32 (little endian, one row per sentence).

    pip install torch sentence-transformers
    HF_HUB_OFFLINE=1 python reference.py ~/.cache/vademecum/models/minilm

The reference is sentence-transformers in float32: its tokenizer, mean pooling, unit length, 256 positions.
"""
import json
import sys

import numpy
from sentence_transformers import SentenceTransformer

LONG = (
    "The circulation pump of the heating circuit starts when the outdoor temperature falls below the heating limit. "
    "Check the pressure at the manometer first: it must read between 1.2 and 1.8 bar with the system cold. "
)
SENTENCES = [
    "How do I reset the controller after error E-42?",
    "E-42: flow sensor, no signal (> 30 s). Check cable X7/3, replace sensor if R < 1.2 kΩ.",
    "The maximum supply temperature is 55 °C; above 60 °C the unit switches off.",
    "Die Wärmepumpe läuft nicht an, obwohl die Außentemperatur unter der Heizgrenze liegt.",
    "Où se trouve la soupape de sécurité, et à quelle pression s'ouvre-t-elle ?",
    "¿Cuántos litros de agua hay en el depósito de inercia?",
    "Naïve café façade, coöperate, Ångström, Łódź, İstanbul, ﬁne ligatures",
    "Как сбросить ошибку датчика протока после отключения питания?",
    "Ο αισθητήρας θερμοκρασίας δεν ανταποκρίνεται.",
    "ヒートポンプの設定温度を変更するにはどうすればよいですか？",
    "如何在断电后重置控制器？错误代码 E-42。",
    "펌프 압력이 낮을 때 어떻게 해야 하나요?",
    "كيف يمكنني إعادة ضبط وحدة التحكم بعد انقطاع التيار؟",
    "नियंत्रक को रीसेट कैसे करें?",
    "כיצד מאפסים את הבקר לאחר הפסקת חשמל?",
    "Alarm 🔥🚨 the boiler room is hot! 👩‍🔧 call service 🙂",
    "SELECT * FROM sensors WHERE id = 'a1b2-c3d4' AND value >= 3.14e-2; -- https://example.org/x?y=1&z=%20",
    "ok",
    "  Tabs\tand\nnewlines, \u200bzero width, non\u00a0breaking spaces   and supercalifragilisticexpialidocious  ",
    LONG * 9,
]

model = SentenceTransformer(sys.argv[1], device="cpu")
rows = []
for text in SENTENCES:
    ids = model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]
    whole = model.tokenizer(text, truncation=False)["input_ids"]
    rows.append({"text": text, "ids": ids, "truncated": len(whole) > len(ids)})
vectors = numpy.concatenate([model.encode([text], normalize_embeddings=True) for text in SENTENCES])
assert vectors.dtype == numpy.float32 and vectors.shape == (len(SENTENCES), 384), vectors.shape
with open("sentences.json", "w", encoding="utf-8") as out:
    out.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
vectors.astype("<f4").tofile("vectors.f32")
print([len(row["ids"]) for row in rows], sum(row["truncated"] for row in rows))
