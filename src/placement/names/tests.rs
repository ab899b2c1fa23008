use super::*;
use proptest::prelude::*;

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn read(path: &str) -> Option<(Client, Option<u32>, Option<u32>)> {
    parse(&Target { path: path.as_bytes() }).map(|info| (info.client, info.rank, info.world))
}

/// Every path must be read as `client`, with this rank out of this many.
fn expect(client: Client, cases: &[(&str, Option<(u32, u32)>)]) {
    for (path, rank) in cases {
        let path = path.replace("HASH", HASH);
        let wanted = (client, rank.map(|r| r.0), rank.map(|r| r.1));
        assert_eq!(read(&path), Some(wanted), "{path}");
    }
}

/// No path may be read as any client's.
fn expect_nothing(paths: &[&str]) {
    for path in paths {
        let path = path.replace("HASH", HASH);
        assert_eq!(read(&path), None, "{path}");
    }
}

#[test]
fn lmcache_local_disk() {
    expect(
        Client::LmcacheLocalDisk,
        &[
            ("meta-llama-Llama-3.1-8B-Instruct@8@3@657aaba709c54b87@bfloat16.pt", Some((3, 8))),
            ("-data-models-DeepSeek-V3@1@0@-3f9a1c77be210d4@bfloat16.pt", Some((0, 1))),
            ("Qwen-Qwen3-8B@2@1@9e0d44aa11c2b3f0@half@17@user%alice.pt", Some((1, 2))),
            (
                "vllm@-workspace-models-Qwen2.5-3B-Instruct@1@0@be2349cd863474b49b0a5912559dddabcbba41969169a049d1e10881e3c93942.pt",
                Some((0, 1)),
            ),
            // The hash as a decimal string (0.3.5 and older), two tags, a tag without a value, a dtype of 8 bits.
            ("huggingface@m@4@2@-7316402198451937.pt", Some((2, 4))),
            ("sub/dir/m@16@15@1@fp8_e4m3fnuz@0@a%b@c%.pt", Some((15, 16))),
            // An at sign, digits or both in the model's name.
            ("org-model@v2@8@7@abc@bfloat16.pt", Some((7, 8))),
            ("model@8@3@8@5@abc@bfloat16.pt", Some((5, 8))),
            ("7@8@3@1234.pt", Some((3, 8))),
        ],
    );
    expect_nothing(&[
        "@8@3@abc@half.pt",
        "m@8@3.pt",
        "m@8@x@abc@half.pt",
        "m@8@-3@abc@half.pt",
        "m@8@8@abc@half.pt",
        "m@0@0@abc@half.pt",
        "m@8@4294967296@abc@half.pt",
        "m@99999999999999999999@3@abc@half.pt",
        "m@8@3@xyz@half.pt",
        "m@8@3@-@half.pt",
        "m@8@3@abc@what.pt",
        "m@8@3@abc@half@%v.pt",
        "m@8@3@abc@half.pt.part",
        "model.pt",
        ".pt",
    ]);
}

#[test]
fn lmcache_fs_remote() {
    expect(
        Client::LmcacheFs,
        &[
            ("meta-llama-SEP-Llama-3.1-8B-Instruct@8@3@657aaba709c54b87@bfloat16.data", Some((3, 8))),
            ("meta-llama-SEP-Llama-3.1-8B-Instruct@8@3@657aaba709c54b87@bfloat16.tmp", Some((3, 8))),
            ("tmp/m@2@1@-1f@uint8@user%a_12.tmp", Some((1, 2))),
            ("m@2@1@-1f@fp8_e5m2.data.tmp", Some((1, 2))),
        ],
    );
    expect_nothing(&["notes.data", "a.tmp", ".tmp", ".data", "@.data"]);
}

#[test]
fn lmcache_gds() {
    expect(
        Client::LmcacheGds,
        &[
            (
                "73/12/meta-llama%2FLlama-3.1-8B-Instruct%408%403%40657aaba709c54b87%40bfloat16.kvcache.safetensors",
                Some((3, 8)),
            ),
            (
                "-4/61/%2Fdata%2Fmodels%2FQwen3-8B%402%401%40-10624dd2f1a9fb%40bfloat16.kvcache.safetensors.metadata",
                Some((1, 2)),
            ),
            ("a/b/m%408%403%40657a%40bfloat16.kvcache.safetensors.tmp72ec72f3", Some((3, 8))),
            ("a/b/m%408%403%40657a%40bfloat16.kvcache.safetensors.metadata.tmp72ec72f3", Some((3, 8))),
            ("a/b/m%408%403%40657a%40half.weka1", Some((3, 8))),
            ("a/b/m%408%403%40657a%40half%40user%25al%2540.weka1.metadata", Some((3, 8))),
        ],
    );
    expect_nothing(&[
        "a/b/m%4.kvcache.safetensors",
        "model.kvcache.safetensors",
        "m%408%403%40657a%40half.kvcache.safetensors.tmp72ec72f",
    ]);
    let long = format!("{}%408%403%40657a%40half.kvcache.safetensors", "m".repeat(300));
    assert_eq!(read(&long), None);
}

#[test]
fn lmcache_server() {
    expect(
        Client::LmcacheMp,
        &[
            ("meta-llama-SEP-Llama-3.1-8B-Instruct@0x08030803@0@HASH.data", Some((3, 8))),
            ("meta-llama-SEP-Llama-3.1-8B-Instruct@0x01000100@0@HASH.data", Some((0, 1))),
            ("meta-llama-SEP-Llama-3.1-8B-Instruct@0x04020402@1@HASH@tenantA.data", Some((2, 4))),
            ("m@0x04020402@1@HASH@tenant_12.tmp", Some((2, 4))),
            ("tmp/m@0x04020402@1@HASH.tmp", Some((2, 4))),
            ("5f/ab/m@0x04020402@1@HASH.data.tmp.17", Some((2, 4))),
            // Before object groups; a salt that looks like a hash; the second server of two.
            ("m@0x04020402@HASH.data", Some((2, 4))),
            ("m@0x04020402@HASH@tenantA.data", Some((2, 4))),
            ("m@0x04020402@a@HASH@0123456789abcdef.data", Some((2, 4))),
            ("m@0x100a0802@0@HASH.data", Some((2, 8))),
            ("m@v2@0x04020402@0@HASH.data", Some((2, 4))),
        ],
    );
    expect_nothing(&[
        "@0x04020402@0@HASH.data",
        "m@0x04020402@0@.data",
        "m@0x04020402.data",
        "m@0x0402040@0@HASH.data",
        "m@0x04020404@0@HASH.data",
        "m@0x04050402@0@HASH.data",
        "m@0x0402040g@0@HASH.data",
        "m@0x04020402@0@HASH@a@b.data",
    ]);
}

#[test]
fn lmcache_nixl() {
    expect(
        Client::LmcacheMpNixl,
        &[
            ("meta-llama--Llama-3.1-8B-Instruct_08030803_0_HASH.bin", Some((3, 8))),
            ("aa/bb/m_04020402_1f_HASH@tenant_A.bin", Some((2, 4))),
            ("m_x_04020402_1_HASH.bin.tmp.92e8b147cac04cd698f123b918400c1b", Some((2, 4))),
        ],
    );
    expect(
        Client::LmcacheNixl,
        &[
            ("meta-llama_Llama-3.1-8B-Instruct_8_3_657aaba7_bfloat16", Some((3, 8))),
            ("m_8_3_-657aaba7_fp8_e4m3fn", Some((3, 8))),
            ("m_1_2_8_3_ff_int8", Some((3, 8))),
        ],
    );
    expect(Client::LmcacheNixlPool, &[("obj_0_1a2b.bin", None), ("obj_12345678901234567890_ffff.bin", None)]);
    expect_nothing(&[
        "_04020402_1_HASH.bin",
        "m_04020402_HASH.bin",
        "m_04020404_1_HASH.bin",
        "m_04020402_1_abc.bin",
        "obj_0_1a2.bin",
        "obj__1a2b.bin",
        "weights.bin",
        "m_8_8_657a_bfloat16",
        "m_8_3_657a_e4m3fn",
        "_8_3_657a_half",
        "8_3_657a_half",
    ]);
}

#[test]
fn sglang() {
    expect(
        Client::SglangFile,
        &[
            ("HASH_meta-llama-Llama-3.1-8B-Instruct_3_8.bin", Some((3, 8))),
            ("HASH_deepseek-ai-DeepSeek-V3.bin", None),
            (".92e8b147cac04cd698f123b918400c1b.tmp", None),
            ("HASH.mamba_m_3_8.bin", Some((3, 8))),
            // Pipeline stage 1 of 2 after tensor rank 3 of 8, with what may follow it.
            ("HASH_m_3_8_2_1.bin", Some((11, 16))),
            ("HASH_m_3_8_2_1_cp0_2_tp8_dcp1_0_page64.bin", Some((11, 16))),
            ("HASH_m_3_8_cp1_2.bin", Some((3, 8))),
            // Numbers at the end of the model's name; without a tensor rank; the unified scheme.
            ("HASH_m_0_1_3_8.bin", Some((3, 8))),
            ("HASH_llama_3_3_8.bin", Some((3, 8))),
            ("HASH_llama_8_3.bin", None),
            ("HASH_m_2_1.bin", None),
            ("HASH_m_3_99999999999.bin", None),
            ("HASH_ukv1-0123456789abcdef_L0-31_H4.bin", None),
            ("HASH_3_8.bin", None),
        ],
    );
    expect(
        Client::SglangNixl,
        &[
            ("5f/HASH_Qwen-Qwen3-8B_1_2_k", Some((1, 2))),
            ("5f/HASH_Qwen-Qwen3-8B_1_2_v", Some((1, 2))),
            ("HASH_m_1_2_mamba", Some((1, 2))),
            ("HASH_deepseek-ai-DeepSeek-V3_k", None),
        ],
    );
    expect_nothing(&["HASH_m_1_2", "HASH", "HASH_", "HASHf_m_1_2_k", "HASH.bin", "HASH.pool.bin"]);
    expect_nothing(&[&HASH.to_uppercase(), ".92e8b147cac04cd698f123b918400c1.tmp"]);
}

#[test]
fn vllm_and_llmd() {
    let path = |rank: &str, name: &str| format!("meta-llama_X_0123456789ab_{rank}/abc/de_g0/{name}");
    for name in ["9f86d081.bin", "9f86d081.bin_9223372036854775807.tmp"] {
        assert_eq!(read(&path("r0", name)), Some((Client::VllmFs, None, None)));
        assert_eq!(read(&path("r3", name)), Some((Client::LlmdFs, Some(3), None)));
        assert_eq!(read(&format!("root/{}", path("r12", name))), Some((Client::LlmdFs, Some(12), None)));
        // A 64-digit name alone must not be taken for one of SGLang's.
        assert_eq!(read(&path("r3", &name.replace("9f86d081", HASH))).map(|i| i.1), Some(Some(3)));
        for rank in ["r", "3", "r4294967296", "r-1", "x_r3"] {
            assert_eq!(read(&path(rank, name)), None, "{rank}");
        }
    }
    expect_nothing(&[
        "m_0123456789ab_r3/abc/9f86.bin",
        "m_0123456789ab_r3/abcd/de_g0/9f86.bin",
        "m_0123456789ab_r3/abc/def_g0/9f86.bin",
        "m_0123456789ab_r3/abc/de_0/9f86.bin",
        "m_0123456789a_r3/abc/de_g0/9f86.bin",
        "m_0123456789ab_r3/abc/de_g0/config.bin",
        "m_0123456789ab_r3/abc/de_g0/.o_direct_probe_1.tmp",
        "abc/de_g0/9f86.bin",
    ]);
}

#[test]
fn a_rank_in_a_world_of_one_tells_nothing() {
    let telling = |path: &str| parse(&Target { path: path.as_bytes() }).and_then(|info| info.telling_rank());
    assert_eq!(telling("m@1@0@abc@half.pt"), None);
    assert_eq!(telling("m@2@0@abc@half.pt"), Some(0));
    assert_eq!(telling("m_0123456789ab_r3/abc/de_g0/9f.bin"), Some(3));
}

#[test]
fn the_key_of_a_temporary_name_is_that_of_the_final_one() {
    let same = [
        ("m@8@3@ab@half.tmp", "m@8@3@ab@half.data"),
        ("m@8@3@ab@half.data.tmp", "m@8@3@ab@half.data"),
        ("m.kvcache.safetensors.tmp01234567", "m.kvcache.safetensors"),
        ("m.kvcache.safetensors.metadata", "m.kvcache.safetensors"),
        ("m_0_ff.bin.tmp.92e8b147cac04cd698f123b918400c1b", "m_0_ff.bin"),
        ("m@0x08030803@0@ff.data.tmp.1", "m@0x08030803@0@ff.data"),
        ("9f86.bin_123.tmp", "9f86.bin"),
    ];
    for (temporary, last) in same {
        assert_eq!(key(temporary.as_bytes()), key(last.as_bytes()), "{temporary}");
    }
    for name in
        ["x.pt", "9f86.bin", ".tmp", ".data", "", ".92e8b147cac04cd698f123b918400c1b.tmp", "a.tmpfile"]
    {
        assert_eq!(key(name.as_bytes()), name.as_bytes());
    }
}

#[test]
fn names_need_not_be_utf8() {
    let info = parse(&Target { path: b"caf\xe9\xff@8@3@abc@half.pt" });
    assert_eq!(info.and_then(|i| i.rank), Some(3));
    assert_eq!(parse(&Target { path: b"\xff\xfe@\x80.pt" }), None);
    let info = parse(&Target { path: b"%E9%FFm%408%403%40657a%40half.kvcache.safetensors" });
    assert_eq!(info.and_then(|i| i.rank), Some(3));
}

/// Pieces of all the grammars, to be put together at random.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "@",
        "_",
        ".",
        "%",
        "%40",
        "-",
        "/",
        "0x",
        "0x08030803",
        "08030803",
        "8",
        "3",
        "4294967296",
        "half",
        "fp8_e4m3fn",
        "k",
        "page1",
        "cp0",
        "tp1",
        "r3",
        "_g0",
        "abc",
        "de",
        ".pt",
        ".data",
        ".bin",
        ".tmp",
        ".tmp.",
        ".kvcache.safetensors",
        ".weka1",
        ".metadata",
        "obj_",
        "_0123456789ab",
        "01234567",
        "92e8b147cac04cd698f123b918400c1b",
        HASH,
    ];
    prop_oneof![
        8 => proptest::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_panics_and_a_rank_is_below_its_world(pieces in proptest::collection::vec(piece(), 0..14)) {
        let path = pieces.concat();
        if let Some(NameInfo { rank: Some(rank), world: Some(world), .. }) = parse(&Target { path: &path }) {
            prop_assert!(rank < world);
        }
        prop_assert!(!key(&path).is_empty() || path.is_empty());
    }

    #[test]
    fn a_rank_survives_any_model_name(model in "[a-zA-Z0-9@._%-]{1,60}", rank in 0_u32..8, hash: i64) {
        let hash = if hash < 0 { format!("-{:x}", hash.unsigned_abs()) } else { format!("{hash:x}") };
        let path = format!("{model}@8@{rank}@{hash}@bfloat16.pt");
        prop_assert_eq!(read(&path).and_then(|info| info.1), Some(rank));
    }
}
