SUMMARY = "Answers questions about your own documents, offline, over MQTT"
DESCRIPTION = "A daemon that has read the owner's documents and answers questions about them with citations, with a small \
language model and a sentence encoder on the board's own processor."
HOMEPAGE = "https://crates.io/crates/vademecum"
SECTION = "net"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
                    file://LICENSE-MIT;md5=114adddbf2aaf672f02a692645fa225f"

# cmake and make build llama.cpp, bindgen reads its headers with libclang.
DEPENDS = "clang-native cmake-native"

PV = "0.1.0+git"
VADEMECUM_URI ?= "git://${VADEMECUM_CHECKOUT};protocol=file;branch=main"
SRC_URI = "${VADEMECUM_URI} \
           file://arm-arch.cmake \
           "
SRCREV ?= "${AUTOREV}"

inherit cargo cargo-update-recipe-crates pkgconfig systemd useradd
inherit_defer ${@bb.utils.contains('PACKAGECONFIG', 'cuda', 'cuda', '', d)}

require ${BPN}-crates.inc

# Each is a feature of the crate. cuda needs meta-tegra.
PACKAGECONFIG ??= "broker openmp pdf"
PACKAGECONFIG[broker] = ""
PACKAGECONFIG[openmp] = ""
PACKAGECONFIG[pdf] = ""
PACKAGECONFIG[cuda] = ",,cuda-cudart libcublas"

CARGO_FEATURES = "${@','.join(bb.utils.filter('PACKAGECONFIG', 'broker openmp pdf cuda', d).split())}"
CARGO_BUILD_FLAGS:append = " --no-default-features --features '${CARGO_FEATURES}'"

# llama-cpp-sys-2 pins plain armv8-a for every aarch64 target; arm-arch.cmake puts what the machine's tune can do in its place.
# Carmel (Xavier) has half-precision arithmetic and no dot product.
VADEMECUM_ARM_ARCH = "armv8-a"
VADEMECUM_ARM_ARCH:aarch64 = "${@vademecum_arm_arch(d)}"

def vademecum_arm_arch(d):
    tune = set((d.getVar("TUNE_FEATURES") or "").split())
    if tune & {"cortexa55", "cortexa75", "cortexa76", "cortexa76ae", "cortexa78", "cortexa78ae", "neoversen1"}:
        return "armv8.2-a+dotprod+fp16"
    if "carmel" in tune:
        return "armv8.2-a+fp16"
    return "armv8-a"

export VADEMECUM_ARM_ARCH
export CMAKE_PROJECT_INCLUDE = "${UNPACKDIR}/arm-arch.cmake"
export LIBCLANG_PATH = "${STAGING_LIBDIR_NATIVE}"
export BINDGEN_EXTRA_CLANG_ARGS = "--target=${TARGET_SYS} --sysroot=${STAGING_DIR_TARGET}"

# Unicode's tables without the dictionaries, which are 3 MB: see cross-targets/README.md.
export ICU4X_DATA_DIR = "${B}/icu4x"

do_compile:prepend() {
    cargo metadata --format-version 1 --frozen --manifest-path ${S}/Cargo.toml | python3 ${S}/cross-targets/icu_data.py ${ICU4X_DATA_DIR}
}

do_install:append() {
    install -D -m 0644 ${S}/config/systemd/vademecum.service ${D}${systemd_system_unitdir}/vademecum.service
    install -D -m 0644 ${S}/config/systemd/vademecum.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/vademecum.conf
    install -D -m 0644 ${S}/config/vademecum.toml ${D}${sysconfdir}/vademecum/vademecum.toml
    # The commands of every user then find the service's library.
    sed -i 's|^#data_dir = ""|data_dir = "/var/lib/vademecum"|' ${D}${sysconfdir}/vademecum/vademecum.toml
}

SYSTEMD_SERVICE:${PN} = "vademecum.service"
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir ${localstatedir}/lib/vademecum --shell ${base_sbindir}/nologin vademecum"

FILES:${PN} += "${nonarch_libdir}/tmpfiles.d"
CONFFILES:${PN} = "${sysconfdir}/vademecum/vademecum.toml"
RRECOMMENDS:${PN} = "ca-certificates"

COMPATIBLE_HOST = "(aarch64|x86_64).*-linux"
