/* What the bench asked to have recorded: transfers on the bus, and changes of output lines. */

#include <stdlib.h>

#include "board.h"

static FILE *edges, *transfers;
static char *edges_text, *transfers_text;
static size_t edges_size, transfers_size;

static void stop(FILE **file, char **text) {
    if (*file) fclose(*file);
    free(*text);
    *file = NULL;
    *text = NULL;
}

void record_begin(bool on) {
    stop(&edges, &edges_text);
    stop(&transfers, &transfers_text);
    if (!on) return;
    edges = open_memstream(&edges_text, &edges_size);
    transfers = open_memstream(&transfers_text, &transfers_size);
}

void record_edge(int offset, bool level, int64_t t) {
    if (edges) fprintf(edges, "%lld %d %d\n", (long long)t, offset, level);
}

/* begin end result address:w:bytes address:r:bytes ..; a read that failed has no bytes */
void record_transfer(const struct transfer *transfer) {
    if (!transfers) return;
    fprintf(transfers, "%lld %lld %d", (long long)transfer->begin_ns, (long long)transfer->end_ns, transfer->result);
    for (int i = 0; i < transfer->count; i++) {
        bool read = transfer->flags[i] & MESSAGE_READ;
        fprintf(transfers, " %02x:%c:", transfer->address[i], read ? 'r' : 'w');
        for (int k = 0; k < transfer->length[i] && (!read || transfer->result > 0); k++)
            fprintf(transfers, "%02x", transfer->data[i][k]);
    }
    fputc('\n', transfers);
}

/* Text from an offset on, as much as fits an answer; the bench asks until nothing comes. */
void record_read(bool of_lines, size_t from, FILE *out) {
    FILE *file = of_lines ? edges : transfers;
    if (!file) return;
    fflush(file);
    const char *text = of_lines ? edges_text : transfers_text;
    size_t size = of_lines ? edges_size : transfers_size;
    if (from < size) fwrite(text + from, 1, size - from < 100000 ? size - from : 100000, out);
}
