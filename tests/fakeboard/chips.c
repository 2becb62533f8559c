/* The chips as their I2C messages find them. A write's first byte is the register pointer, which stays. */

#include <errno.h>
#include <math.h>
#include <string.h>

#include "board.h"

enum { DAC_CONFIG = 1, DAC_STATUS = 2, DAC_BROADCAST = 3, DAC_DATA = 8, PICO_ADC = 4, PICO_VERSION = 8 };

const char *const kind_names[KINDS] = { "ads1115", "ads1114", "tmp1075", "dac43608", "pico" };

struct chip chips[CHIPS];
int chip_count;

bool is_ads(const struct chip *chip) {
    return chip->kind == ADS1115 || chip->kind == ADS1114;
}

struct chip *chip_at(int address) {
    for (struct chip *chip = chips; chip < chips + chip_count; chip++)
        if (chip->address == address) return chip->unplugged ? NULL : chip;
    return NULL;
}

static void dac_outputs(struct chip *chip) {
    for (int i = 0; i < 8; i++) {
        bool off = chip->reg[DAC_CONFIG] & (0x100 | 1 << i);
        chip->output[i] = off ? -1 : chip->reg[DAC_DATA + i] >> 4 & 0xff;
    }
}

void chip_reset(struct chip *chip, int64_t t) {
    memset(chip->reg, 0, sizeof chip->reg);
    chip->pointer = 0;
    switch (chip->kind) {
    case ADS1115:
    case ADS1114:
        ads_power_on(chip, t);
        break;
    case TMP1075:
        chip->reg[1] = 0x00ff;
        chip->reg[2] = 0x4b00;
        chip->reg[3] = 0x5000;
        chip->reg[15] = 0x7500;
        break;
    case DAC43608:
        chip->reg[DAC_CONFIG] = 0x00ff;
        chip->reg[DAC_STATUS] = 0x0300;
        dac_outputs(chip);
        break;
    case PICO:
        memset(chip->output, 0, sizeof chip->output);
        break;
    }
}

static void dac_write(struct chip *chip, int reg, uint16_t value, int64_t t) {
    if (reg == DAC_STATUS && (value & 15) == 10) {
        chip_reset(chip, t);
        return;
    }
    chip->reg[reg] = value;
    if (reg == DAC_BROADCAST)
        for (int i = 0; i < 8; i++) chip->reg[DAC_DATA + i] = value;
    dac_outputs(chip);
}

void chip_write(struct chip *chip, const uint8_t *data, int length, int64_t t) {
    bool lamp = chip->kind == DAC43608 || chip->kind == PICO;
    uint16_t value = length >= 3 ? data[1] << 8 | data[2] : 0;
    if (length >= 1) chip->pointer = data[0];
    if (lamp) light_settle(t);
    if (chip->kind == PICO) {
        if (length >= 2 && chip->pointer < 4) chip->output[chip->pointer] = data[1];
    } else if (length >= 3) {
        if (is_ads(chip)) ads_write(chip, chip->pointer, value, t);
        else if (chip->kind == DAC43608) dac_write(chip, chip->pointer & 15, value, t);
        else if (chip->pointer && chip->pointer < 4) chip->reg[chip->pointer] = value;
    }
    if (lamp) light_changed(t);
}

/* 12 bits of 62.5 mK, left-justified. */
static uint16_t tmp_code(const struct chip *chip) {
    double steps = floor(chip->temperature_mc / 62.5 + 0.5);
    return (uint16_t)((int)fmin(fmax(steps, -2048), 2047) * 16);
}

static uint16_t value_of(struct chip *chip, int64_t t) {
    switch (chip->kind) {
    case TMP1075:
        plant_settle(t);
        return chip->pointer ? chip->reg[chip->pointer & 15] : tmp_code(chip);
    case DAC43608:
        return chip->reg[chip->pointer & 15];
    case PICO:
        if (chip->pointer == PICO_VERSION) return 0x0004;        /* 0.4 */
        if (chip->pointer >= PICO_ADC && chip->pointer < PICO_ADC + INPUTS)
            return pico_read(chip, chip->pointer - PICO_ADC, t);
        return 0;
    default:
        return ads_read(chip, chip->pointer);
    }
}

void chip_read(struct chip *chip, uint8_t *data, int length, int64_t t) {
    uint16_t value = value_of(chip, t);
    bool little = chip->kind == PICO;
    for (int i = 0; i < length; i++)
        data[i] = i > 1 ? 0xff : (uint8_t)((i == 0) == little ? value : value >> 8);
}
