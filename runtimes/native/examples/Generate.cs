// Generate.cs: the library from C#, by P/Invoke.
//
//     mcs Generate.cs && LD_LIBRARY_PATH=... mono Generate.exe BUNDLE MASK.raw CONTEXT.raw SEED IMAGE.raw
//
// The files hold the bytes of an image, row by row, as large as the bundle's images.
using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Text;

static class CsgEdge
{
    const string Library = "csg_edge";

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    public delegate void Log(int level, IntPtr text, IntPtr data);

    [StructLayout(LayoutKind.Sequential)]
    public struct Options
    {
        public UIntPtr Size;
        public IntPtr Runtime, Device, Precision;
        public int Steps, Threads;
        public IntPtr Cache;
        public ulong MemoryLimit;
        public int Unproven;
        public Log Log;
        public IntPtr LogData;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Info
    {
        public UIntPtr Size;
        public int Height, Width, NoiseChannels, NoiseHeight, NoiseWidth, FibreChannels, FibreRows, FibreColumns;
        public int Classes, Steps, Format;
        public ulong MemoryEstimate;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Job
    {
        public UIntPtr Size;
        public IntPtr Mask, MaskStride, Context, ContextStride;
        public ulong Seed;
        public IntPtr Noise, Fibre, Image, ImageStride, FibreUsed;
        public uint TimeoutMs;
        public IntPtr Cancellation;
    }

    [DllImport(Library)] public static extern int csg_edge_open(byte[] bundle, ref Options options, out IntPtr generator);
    [DllImport(Library)] public static extern void csg_edge_close(IntPtr generator);
    [DllImport(Library)] public static extern UIntPtr csg_edge_last_error(IntPtr generator, byte[] text, UIntPtr capacity);
    [DllImport(Library)] public static extern int csg_edge_get_info(IntPtr generator, ref Info info);
    [DllImport(Library)] public static extern IntPtr csg_edge_choice(IntPtr generator);
    [DllImport(Library)] public static extern int csg_edge_generate(IntPtr generator, ref Job job);

    public static UIntPtr SizeOf<T>() { return (UIntPtr)Marshal.SizeOf(typeof(T)); }

    public static byte[] Text(string text) { return Encoding.UTF8.GetBytes(text + "\0"); }
}

// One engine of a bundle, open; dispose of it.
sealed class Generator : IDisposable
{
    IntPtr handle;

    public Generator(string bundle)
    {
        var options = new CsgEdge.Options { Size = CsgEdge.SizeOf<CsgEdge.Options>() };
        Check(CsgEdge.csg_edge_open(CsgEdge.Text(bundle), ref options, out handle));
        var info = new CsgEdge.Info { Size = CsgEdge.SizeOf<CsgEdge.Info>() };
        Check(CsgEdge.csg_edge_get_info(handle, ref info));
        Height = info.Height;
        Width = info.Width;
    }

    public int Height { get; private set; }
    public int Width { get; private set; }
    public string Choice { get { return Marshal.PtrToStringAnsi(CsgEdge.csg_edge_choice(handle)); } }

    public byte[] Generate(byte[] mask, byte[] context, ulong seed)
    {
        if (mask.Length != Height * Width || context.Length != Height * Width)
            throw new ArgumentException("give " + Height * Width + " bytes of mask and context");
        var image = new byte[Height * Width];
        var pins = new[] { GCHandle.Alloc(mask, GCHandleType.Pinned), GCHandle.Alloc(context, GCHandleType.Pinned),
                           GCHandle.Alloc(image, GCHandleType.Pinned) };
        try
        {
            var job = new CsgEdge.Job { Size = CsgEdge.SizeOf<CsgEdge.Job>(), Mask = pins[0].AddrOfPinnedObject(),
                                        Context = pins[1].AddrOfPinnedObject(), Image = pins[2].AddrOfPinnedObject(),
                                        Seed = seed };
            Check(CsgEdge.csg_edge_generate(handle, ref job));
        }
        finally
        {
            foreach (var pin in pins) pin.Free();
        }
        return image;
    }

    public void Dispose()
    {
        CsgEdge.csg_edge_close(handle);
        handle = IntPtr.Zero;
    }

    void Check(int status)
    {
        if (status == 0) return;
        var text = new byte[1024];
        CsgEdge.csg_edge_last_error(handle, text, (UIntPtr)text.Length);
        throw new InvalidOperationException(Encoding.UTF8.GetString(text).TrimEnd('\0'));
    }
}

static class Program
{
    static int Main(string[] arguments)
    {
        try
        {
            using (var generator = new Generator(arguments[0]))
            {
                Console.Error.WriteLine(generator.Choice);
                var image = generator.Generate(File.ReadAllBytes(arguments[1]), File.ReadAllBytes(arguments[2]),
                                               ulong.Parse(arguments[3]));
                File.WriteAllBytes(arguments[4], image);
            }
            return 0;
        }
        catch (Exception error)
        {
            Console.Error.WriteLine("Generate: " + error.Message);
            return 2;
        }
    }
}
