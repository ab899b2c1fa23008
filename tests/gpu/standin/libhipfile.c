/* The stand-in for libcufile.so.0 under hipFile's names. */
#define DRIVER "libamdhip64.so"
#define cuFileSetParameterBool hipFileSetParameterBool
#define cuFileDriverOpen hipFileDriverOpen
#define cuFileDriverClose hipFileDriverClose
#define cuFileHandleRegister hipFileHandleRegister
#define cuFileHandleDeregister hipFileHandleDeregister
#define cuFileBufRegister hipFileBufRegister
#define cuFileBufDeregister hipFileBufDeregister
#define cuFileRead hipFileRead
#define cuFileWrite hipFileWrite
#include "libcufile.c"
