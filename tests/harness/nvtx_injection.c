/* A library for NVTX_INJECTION64_PATH, as a profiler brings one: writes every range to the file that NVTX_LOG names, "+ name" and "-".
 * Source of the interface: nvtx3/nvtxDetail/nvtxTypes.h of the CUDA toolkit. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

typedef struct {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type; /* 1 char, 2 wchar_t, 3 a registered string */
    const void* message;
} Attributes;

typedef struct {
    int wide;
    const void* text;
} Registered;

static FILE* file;

static void put(const void* text, int wide) {
    fputs("+ ", file);
    if (wide)
        for (const wchar_t* at = text; *at; ++at) fputc((int)*at, file);
    else
        fputs(text, file);
    fputc('\n', file);
    fflush(file);
}

static int push(void* domain, const Attributes* event) {
    (void)domain;
    if (event->message_type == 3) {
        const Registered* string = event->message;
        put(string->text, string->wide);
    } else {
        put(event->message, event->message_type == 2);
    }
    return 0;
}

static int push_plain(const char* text) { return put(text, 0), 0; }
static int push_event(const Attributes* event) { return push(NULL, event); }
static int pop_plain(void) { return fputs("-\n", file), fflush(file), 0; }
static int pop(void* domain) { return (void)domain, pop_plain(); }
static void* create(const void* name) { return (void)name, (void*)1; }

static void* registered(const void* text, int wide) {
    Registered* string = malloc(sizeof *string);
    size_t size = wide ? (wcslen(text) + 1) * sizeof(wchar_t) : 0;
    if (wide) {
        string->text = malloc(size);
        wcscpy((wchar_t*)string->text, text);
    } else {
        string->text = malloc(snprintf(NULL, 0, "%s", (const char*)text) + 1);
        sprintf((char*)string->text, "%s", (const char*)text);
    }
    string->wide = wide;
    return string;
}
static void* register_narrow(void* domain, const char* text) { return (void)domain, registered(text, 0); }
static void* register_wide(void* domain, const wchar_t* text) { return (void)domain, registered(text, 1); }

typedef struct {
    size_t size;
    int (*functions)(int module, void**** table, unsigned* count);
} Callbacks;

int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
    const Callbacks* callbacks = export_table(1);
    const char* path = getenv("NVTX_LOG");
    void*** table;
    unsigned count;
    if (!callbacks || !path || !(file = fopen(path, "w"))) return 0;
    if (callbacks->functions(1, &table, &count)) { /* ranges of no domain */
        *table[8] = (void*)push_event;
        *table[9] = (void*)push_plain;
        *table[11] = (void*)pop_plain;
    }
    if (callbacks->functions(5, &table, &count)) { /* ranges of a domain */
        *table[4] = (void*)push;
        *table[5] = (void*)pop;
        *table[10] = (void*)register_narrow;
        *table[11] = (void*)register_wide;
        *table[12] = (void*)create;
        *table[13] = (void*)create;
    }
    return 1;
}
