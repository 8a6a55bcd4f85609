"""What the kernel tells of a machine, and what it draws."""

from pathlib import Path

from skerry.models.benching.machine import Power, instruction_sets, is_virtual, memory_mib

X86 = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse4_2 avx2 avx512f hypervisor avx512_vnni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd crc32 asimddp\n"


def files(folder: Path, **content: str) -> None:
    folder.mkdir(parents=True)
    for name, text in content.items():
        (folder / name).write_text(f"{text}\n")


def test_instruction_sets_that_matter_to_a_model_are_told() -> None:
    assert instruction_sets(X86) == ("sse4_2", "avx2", "avx512f", "avx512_vnni")
    assert instruction_sets(ARM) == ("asimd", "asimddp")
    assert (is_virtual(X86), is_virtual(ARM)) == (True, False)
    assert memory_mib("MemTotal:        3934320 kB\n") == 3842


def test_nothing_to_read_is_said_and_no_number_made_up(tmp_path: Path) -> None:
    power = Power(tmp_path, 0.0)
    power.sample()
    assert (power.mean_w(10.0), power.source) == (None, "")


def test_energy_of_all_packages_is_added_and_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    rapl = tmp_path / "class/powercap"
    files(rapl / "intel-rapl:0", name="package-0", energy_uj="90000000", max_energy_range_uj="99999999")
    files(rapl / "intel-rapl:1", name="package-1", energy_uj="5000000", max_energy_range_uj="99999999")
    files(rapl / "intel-rapl:0:0", name="core", energy_uj="1", max_energy_range_uj="99999999")
    power = Power(tmp_path, 100.0)
    (rapl / "intel-rapl:0/energy_uj").write_text("10000000")
    (rapl / "intel-rapl:1/energy_uj").write_text("35000000")
    assert power.mean_w(110.0) == 5.0
    assert "processor alone" in power.source


def test_the_platform_s_own_counter_is_preferred(tmp_path: Path) -> None:
    rapl = tmp_path / "class/powercap"
    files(rapl / "intel-rapl:0", name="package-0", energy_uj="0", max_energy_range_uj="99999999")
    files(rapl / "intel-rapl:1", name="psys", energy_uj="0", max_energy_range_uj="99999999")
    power = Power(tmp_path, 0.0)
    (rapl / "intel-rapl:1/energy_uj").write_text("12000000")
    assert (power.mean_w(1.0), power.source) == (12.0, "RAPL psys: the platform")


def test_a_jetson_s_input_is_read_in_volts_and_amperes(tmp_path: Path) -> None:
    board = tmp_path / "class/hwmon/hwmon3"
    files(board, name="ina3221", in1_label="VDD_IN", in1_input="5000", curr1_input="1200")
    power = Power(tmp_path, 0.0)
    power.sample()
    (board / "curr1_input").write_text("1400")
    power.sample()
    assert power.mean_w(2.0) == 6.5
    assert power.source == "hwmon ina3221 VDD_IN: the board"


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    rapl = tmp_path / "class/powercap"
    files(rapl / "intel-rapl:0", name="package-0", max_energy_range_uj="99999999")
    assert Power(tmp_path, 0.0).mean_w(1.0) is None
